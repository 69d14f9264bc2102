"""Forward and backward over a tree of paths, beside the same rows learned apart.

    OMP_NUM_THREADS=1 python benchmarks/shared_prefix.py [--threads 1] [--repeats 3] [--lengths 512 1024 2048]

Trees have 16 leaves; each path has the same length, and three quarters of it are shared on average: `star`, one trunk; `two
levels`, half of the path shared by all and a quarter by each four; `comb`, leaves that leave one trunk at 16 places in its
second half. All tokens but a prompt of 32 and 4 at the head of each later turn are trained, in every row, with advantages of
the row's own.

The peer is the same learner without sharing: one row at a time, or all in one batch with first tokens that differ, whichever
is quicker. Bound: tokens without sharing over unique tokens. Share: speedup over bound. CPU seconds of packing, forward,
objective and backward, without the optimiser; the median of repeats that take turns in one process.

Models, random weights: `tiny`, that of search_qa; `wide`, two of the thirty layers of SmolLM2-135M with as much of its
vocabulary.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from agentrl.episode import Episode, Parent, Sampling, Turn, Version, VersionSpan, token_ids
from agentrl.learning import Row, TrainedTurn
from agentrl.learning.local import LocalLearner
from agentrl.objectives import Clipped
from agentrl.transformer.config import ModelConfig
from agentrl.transformer.weights import init_weights, save_weights

MODELS = {
    "tiny": ModelConfig("Qwen3ForCausalLM", 2048, 128, 3, 4, 4, 32, 384, 4096, tied=True),
    "wide": ModelConfig("LlamaForCausalLM", 3276, 576, 2, 9, 3, 64, 1536, 4096, tied=True),
}
LEAVES, PROMPT, CONTEXT = 16, 32, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    options = parser.parse_args()
    print(f"{'model':<7}{'shape':<14}{'length':>7}{'tokens':>8}{'unique':>8}{'apart s':>9}{'batch s':>9}{'ours s':>8}", end="")
    print(f"{'speedup':>9}{'bound':>7}{'share':>7}")
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            save_weights(Path(folder), MODELS[name], init_weights(MODELS[name], 0))
            learner = LocalLearner("p", folder, Clipped(), microbatch_tokens=1 << 20, threads=options.threads)
            for shape in options.shapes:
                for length in options.lengths:
                    print(f"{name:<7}{shape:<14}{length:>7}", end="")
                    measure(learner, SHAPES[shape](length), options.repeats)


def measure(learner: LocalLearner, turns: Sequence[Turn], repeats: int) -> None:
    rows = tree_rows(turns)
    apart = [chain_row(row, number) for number, row in enumerate(rows)]
    ways = ([rows], [[row] for row in apart], [apart])
    seconds: list[list[float]] = []
    tokens = [0, 0, 0]
    learner.step(rows)
    for _ in range(repeats):
        seconds.append([])
        for way, batches in enumerate(ways):
            spent, tokens[way] = 0.0, 0
            for batch in batches:
                tokens[way] += learner.step(batch).tokens
                spent += sum(learner.seconds[lap] for lap in ("packing", "forward", "backward"))
            seconds[-1].append(spent)
    ours, alone, together = (statistics.median(run) for run in zip(*seconds, strict=True))
    speedup, bound = min(alone, together) / ours, tokens[1] / tokens[0]
    print(f"{tokens[1]:>8}{tokens[0]:>8}{alone:>9.3f}{together:>9.3f}{ours:>8.3f}", end="")
    print(f"{speedup:>9.2f}{bound:>7.2f}{speedup / bound:>7.2f}", flush=True)


def star(length: int) -> list[Turn]:
    return grow([(None, length * 3 // 4)] + [(0, length // 4)] * LEAVES)


def two_levels(length: int) -> list[Turn]:
    middle = [(0, length // 4)] * 4
    return grow([(None, length // 2), *middle] + [(parent, length // 4) for parent in (1, 2, 3, 4) for _ in range(4)])


def comb(length: int) -> list[Turn]:
    """The trunk is turns 0 to 15; a tooth grows from each, and all paths have the same length."""
    step = length // 2 // LEAVES
    trunk: list[tuple[int | None, int]] = [(None, length // 2)] + [(at - 1, step) for at in range(1, LEAVES)]
    teeth = [(at, length - length // 2 - at * step) for at in range(LEAVES)]
    return grow(trunk + teeth)


SHAPES = {"star": star, "two levels": two_levels, "comb": comb}


def grow(shape: Sequence[tuple[int | None, int]]) -> list[Turn]:
    """A turn for each (turn that it goes on from, tokens that it adds)."""
    rng = np.random.default_rng(0)
    turns: list[Turn] = []
    ends: list[int] = []
    for number, (parent, length) in enumerate(shape):
        head = PROMPT if parent is None else CONTEXT
        ids = rng.integers(0, 2048, length)
        before = ends[parent] if parent is not None else 0
        link = Parent(str(parent), before) if parent is not None else None
        turns.append(make_turn(str(number), number, link, ids[:head], ids[head:]))
        ends.append(before + length)
    return turns


def tree_rows(turns: Sequence[Turn]) -> list[Row]:
    """A row a leaf, all turns of its path trained, advantages of its own."""
    episode = Episode("tree", "g", None, 0, "", "policy", "done", tuple(turns))
    rng = np.random.default_rng(1)
    rows: list[Row] = []
    for leaf in episode.leaves():
        path = [leaf]
        while (parent := path[0].parent) is not None:
            path.insert(0, episode.by_id[parent.turn])
        trained = (TrainedTurn(turn, rng.normal(size=len(turn.sampled_ids)).astype(np.float32)) for turn in path)
        rows.append(Row(episode, leaf, tuple(trained)))
    return rows


def chain_row(row: Row, number: int) -> Row:
    """The same row as an episode of its own, which shares nothing: its first token is its number."""
    path = [item.turn for item in row.trained]
    first = token_ids(np.concatenate(([number], path[0].context_ids[1:])))
    path[0] = replace(path[0], context_ids=first)
    episode = Episode(f"chain{number}", "g", None, 0, "", "policy", "done", tuple(path))
    trained = (TrainedTurn(turn, item.advantage) for turn, item in zip(path, row.trained, strict=True))
    return Row(episode, path[-1], tuple(trained), row.weight)


def make_turn(name: str, index: int, parent: Parent | None, context: np.ndarray, sampled: np.ndarray) -> Turn:
    spans = (VersionSpan(Version("local", "p", 0), 0, len(sampled)),)
    return Turn(
        id=name,
        agent="a",
        index=index,
        policy="p",
        versions=spans,
        parent=parent,
        predecessor=None,
        branch="",
        context_ids=token_ids(context),
        sampled_ids=token_ids(sampled),
        logprobs=np.full(len(sampled), -7.6, np.float32),
        logprobs_at="before_mask",
        finish="stop",
        sampling=Sampling(),
        seed=0,
        text="",
    )


if __name__ == "__main__":
    main()
