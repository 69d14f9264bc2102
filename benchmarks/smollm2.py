"""SmolLM2-135M beside transformers: tokens per CPU-second of sampling, prefill, and a LoRA step.

    OMP_NUM_THREADS=1 python benchmarks/smollm2.py [--repeats 3]

float32, one thread. Sampling: prompts of 64 random tokens, 32 more drawn, the first one's time taken off. The LoRA step: 16
episodes in two groups; a prompt of 260 tokens that all share, a question of 10 that a group shares, 12 sampled, a document of
60, 8 sampled; rank 16 on every matrix, clipped loss, no optimiser in the peer, which is peft on the rows with the logits of
their last 90 places. Both count tokens as rows times their length, so that what is shared shows as speed.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learner import make_turn

from agentrl.engines.contract import GenerateRequest
from agentrl.engines.local import LocalEngine
from agentrl.episode import Episode, Parent, Sampling, token_ids
from agentrl.learning import AdamW, Row, TrainedTurn
from agentrl.learning.local import LocalLearner
from agentrl.learning.lora import LoRA
from agentrl.objectives import Clipped
from agentrl_workflows.smollm2 import smollm2

BATCHES = (1, 8, 32)
DRAWN = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    model = smollm2()
    rng = np.random.default_rng(0)
    prompts = {count: rng.integers(100, 40000, (count, 64)) for count in BATCHES}
    long = rng.integers(100, 40000, (1, 512))
    ours = asyncio.run(engine(model, prompts, long, repeats)) | learner(model, repeats)
    theirs = transformers(model, prompts, long, repeats)
    print(f"{'tokens per CPU-second':<28}{'here':>8}{'peer':>8}{'ratio':>8}")
    for name, speed in ours.items():
        print(f"{name:<28}{speed:>8.0f}{theirs[name]:>8.0f}{speed / theirs[name]:>8.2f}")


def seconds(run: Callable[[], Any], repeats: int) -> float:
    """Median CPU seconds, after one run that is not counted."""
    times: list[float] = []
    for _ in range(repeats + 1):
        began = time.process_time()
        run()
        times.append(time.process_time() - began)
    return statistics.median(times[1:])


async def engine(model: Path, prompts: dict[int, np.ndarray], long: np.ndarray, repeats: int) -> dict[str, float]:
    speeds: dict[str, float] = {}
    async with LocalEngine(model, threads=1, prefix_cache_tokens=0) as served:

        async def sample(ids: np.ndarray, count: int) -> float:
            times: list[float] = []
            for _ in range(repeats + 1):
                began = time.process_time()
                async with asyncio.TaskGroup() as tasks:
                    for at, prompt in enumerate(ids):
                        request = GenerateRequest(str(at), "policy", (token_ids(prompt),), Sampling(max_tokens=count), at)
                        tasks.create_task(served.generate(request))
                times.append(time.process_time() - began)
            return statistics.median(times[1:])

        for count, ids in prompts.items():
            speeds[f"sampling, {count} at once"] = count * DRAWN / (await sample(ids, DRAWN + 1) - await sample(ids, 1))
        speeds["prefill of 512"] = 512 / await sample(long, 1)
    return speeds


def learner(model: Path, repeats: int) -> dict[str, float]:
    rows = make_rows()
    # a rate of nearly nothing, so that every repeat does the same
    opened = LocalLearner("searcher", model, Clipped(), optimiser=AdamW(1e-12), lora=LoRA(16), microbatch_tokens=1024)
    return {"LoRA step": sum(lengths(rows)) / seconds(lambda: opened.step(rows), repeats)}


def make_rows() -> list[Row]:
    rng = np.random.default_rng(1)

    def draw(count: int) -> np.ndarray:
        return rng.integers(100, 40000, count)

    shared, rows = draw(260), list[Row]()
    for group in range(2):
        question = draw(10)
        for member in range(8):
            first = make_turn("0", 0, None, np.concatenate((shared, question)), draw(12))
            second = make_turn("1", 1, Parent("0", 282), draw(60), draw(8))
            episode = Episode(f"e{group}.{member}", f"g{group}", None, 0, "", "policy", "done", (first, second))
            advantage = np.float32(rng.normal())
            trained = tuple(TrainedTurn(turn, np.full(len(turn.sampled_ids), advantage)) for turn in episode.turns)
            rows.append(Row(episode, second, trained))
    return rows


def lengths(rows: list[Row]) -> list[int]:
    return [row.episode.path_length(row.leaf) for row in rows]


def transformers(model: Path, prompts: dict[int, np.ndarray], long: np.ndarray, repeats: int) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        peer = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    speeds: dict[str, float] = {}
    with torch.no_grad():
        for count, ids in prompts.items():

            def generate(drawn: int, ids: np.ndarray = ids) -> None:
                given = torch.from_numpy(ids)
                seen = torch.ones_like(given)
                peer.generate(given, attention_mask=seen, max_new_tokens=drawn, min_new_tokens=drawn, do_sample=True)

            more = seconds(lambda: generate(DRAWN + 1), repeats) - seconds(lambda: generate(1), repeats)
            speeds[f"sampling, {count} at once"] = count * DRAWN / more
        speeds["prefill of 512"] = 512 / seconds(lambda: peer(torch.from_numpy(long), logits_to_keep=1), repeats)
    rows = make_rows()
    ids = torch.from_numpy(np.stack([row.episode.path(row.leaf) for row in rows]).astype(np.int64))
    advantage = torch.tensor([row.trained[0].advantage[0] for row in rows])[:, None]
    adapted = get_peft_model(peer, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))

    def step() -> None:
        logprobs = adapted(ids, logits_to_keep=90).logits[:, :-1].log_softmax(-1).gather(2, ids[:, -89:, None])[..., 0]
        ratio = (logprobs - logprobs.detach()).exp()
        loss = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage)
        (loss[:, 9:21].sum() + loss[:, -8:].sum()).backward()

    speeds["LoRA step"] = sum(lengths(rows)) / seconds(step, repeats)
    return speeds


if __name__ == "__main__":
    main()
