"""One learner step beside a plain padded forward and backward of transformers on the same tokens.

    OMP_NUM_THREADS=1 python benchmarks/learner.py [--repeats 9]

64 episodes of two turns and about 60 tokens on a Qwen3 of 0.9 M weights (hidden 128, 3 layers, 4 heads, inner 384, vocabulary
2048), float32, one thread; prompts have 20 tokens and are the same in a group. The peer is `Qwen3ForCausalLM` on the rows
padded to the longest, with all logits, the same clipped loss on the same tokens, without an optimiser. Both take turns in one
process; CPU seconds are the median of the repeats.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch

from agentrl.episode import Episode, Parent, Sampling, Turn, Version, VersionSpan, token_ids
from agentrl.learning import AdamW, Muon, Row, TrainedTurn
from agentrl.learning.local import LocalLearner
from agentrl.objectives import Clipped
from agentrl.transformer.config import ModelConfig
from agentrl.transformer.weights import init_weights, save_weights

CONFIG = ModelConfig("Qwen3ForCausalLM", 2048, 128, 3, 4, 4, 32, 384, 512, tied=True)
PROMPT = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_weights(folder, CONFIG, init_weights(CONFIG, 0))
        print(f"{'prompts':<26}{'optimiser':<10}{'tokens':>8}{'unique':>8}{'peer s':>9}{'ours s':>9}{'ratio':>7}", end="")
        print(f"{'with optimiser':>16}{'forward':>9}{'backward':>10}{'optimiser':>11}{'packing':>9}")
        for group, idle, label in (
            (8, 0, "8 groups of 8 episodes"),
            (8, 4, "the same, 4 groups idle"),
            (1, 0, "64, all different"),
        ):
            for optimiser in (Muon(), AdamW()):
                measure(folder, label, make_rows(group, idle), optimiser, repeats)


def measure(folder: Path, label: str, rows: list[Row], optimiser: Muon | AdamW, repeats: int) -> None:
    learner = LocalLearner("searcher", folder, Clipped(), optimiser=optimiser)
    peer = Peer(folder, rows)
    for _ in range(2):
        peer.step()
        learner.step(rows)
    ours: list[dict[str, float]] = []
    theirs: list[float] = []
    for _ in range(repeats):
        start = time.process_time()
        peer.step()
        theirs.append(time.process_time() - start)
        start = time.process_time()
        stats = learner.step(rows)
        ours.append(learner.seconds | {"all": time.process_time() - start})
    middle = {key: statistics.median(run[key] for run in ours) for key in ours[0]}
    base, gradient = statistics.median(theirs), middle["all"] - middle["optimiser"]
    tokens = sum(row.episode.path_length(row.leaf) for row in rows)
    print(f"{label:<26}{type(optimiser).__name__:<10}{tokens:>8}{stats.tokens:>8}{base:>9.3f}{gradient:>9.3f}", end="")
    print(f"{gradient / base:>7.2f}{middle['all']:>9.3f}{middle['all'] / base:>7.2f}", end="")
    shares = (middle[key] / middle["all"] for key in ("forward", "backward", "optimiser", "packing"))
    print("".join(f"{share:>{width}.0%}" for share, width in zip(shares, (9, 10, 11, 9), strict=True)))


def make_rows(group: int, idle: int) -> list[Row]:
    """Two-turn chains; those of the first `idle` groups have advantage 0, as when a group's rewards are all equal."""
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    prompt = np.zeros(0, np.int64)
    for number in range(64):
        if number % group == 0:
            prompt = rng.integers(0, CONFIG.vocab_size, PROMPT)
        query, document, answer = (
            rng.integers(0, CONFIG.vocab_size, rng.integers(*span)) for span in ((8, 14), (14, 22), (8, 14))
        )
        first = make_turn("0", 0, None, prompt, query)
        second = make_turn("1", 1, Parent("0", len(prompt) + len(query)), document, answer)
        episode = Episode(f"e{number}", f"g{number // group}", None, 0, "", "policy", "done", (first, second))
        advantage = np.float32(rng.normal() * (number >= idle * group))
        trained = tuple(TrainedTurn(turn, np.full(len(turn.sampled_ids), advantage)) for turn in episode.turns)
        rows.append(Row(episode, second, trained))
    return rows


def make_turn(name: str, index: int, parent: Parent | None, context: np.ndarray, sampled: np.ndarray) -> Turn:
    spans = (VersionSpan(Version("local", "searcher", 0), 0, len(sampled)),)
    logprobs = np.full(len(sampled), -np.log(CONFIG.vocab_size), np.float32)
    ids, drawn = token_ids(context), token_ids(sampled)
    settings = Sampling()
    return Turn(
        name,
        "searcher",
        index,
        "searcher",
        spans,
        parent,
        None,
        "",
        ids,
        drawn,
        logprobs,
        "before_mask",
        "stop",
        settings,
        0,
        "",
    )


class Peer:
    """transformers on padded rows, written as one would without agentrl."""

    def __init__(self, folder: Path, rows: list[Row]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from transformers import Qwen3ForCausalLM
            from transformers.utils import logging

            logging.disable_progress_bar()
            self.model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
        length = max(row.episode.path_length(row.leaf) for row in rows)
        self.ids = torch.zeros(len(rows), length, dtype=torch.int64)
        self.seen = torch.zeros(len(rows), length, dtype=torch.int64)
        self.mask = torch.zeros(len(rows), length)
        self.behaviour, self.advantage = torch.zeros(len(rows), length), torch.zeros(len(rows), length)
        for line, row in enumerate(rows):
            path = row.episode.path(row.leaf)
            self.ids[line, : len(path)] = torch.from_numpy(path.astype(np.int64))
            self.seen[line, : len(path)] = 1
            for item in row.trained:
                end = row.episode.path_length(item.turn)
                part = slice(end - len(item.turn.sampled_ids), end)
                self.mask[line, part] = 1
                self.behaviour[line, part] = torch.from_numpy(item.turn.logprobs)
                self.advantage[line, part] = torch.from_numpy(item.advantage)

    def step(self) -> None:
        self.model.zero_grad()
        logits = self.model(self.ids, attention_mask=self.seen, use_cache=False).logits[:, :-1]
        logprobs = logits.log_softmax(-1).gather(2, self.ids[:, 1:, None])[..., 0]
        ratio = (logprobs - self.behaviour[:, 1:]).exp()
        advantage, mask = self.advantage[:, 1:], self.mask[:, 1:]
        losses = torch.maximum(-ratio * advantage, -ratio.clamp(0.8, 1.28) * advantage)
        ((losses * mask).sum() / mask.sum()).backward()


if __name__ == "__main__":
    main()
