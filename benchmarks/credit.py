"""How long `agentrl credit` takes as a process, beside what cannot be saved: Python, numpy, and SELECT of the same rows.

    python benchmarks/credit.py [--episodes 5000] [--times 5] [--folder DIR]

The store is a real one: groups of 8, 64 episodes a learner step, 2 to 4 turns an episode, a search with its document by each
turn but the last, a stop note, states, 64 + 48 tokens a turn with log-probs, the rewards at the end, and the rows that
each step trained on with GRPO. Times are the best of several, a process each.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from agentrl.credit import GRPO, to_batch
from agentrl.effect import Effect, EffectKey, EffectKind, digest_request
from agentrl.episode import (
    Episode,
    Group,
    IntArray,
    Parent,
    Reward,
    Sampling,
    Segment,
    State,
    Turn,
    Version,
    VersionSpan,
    digest_ids,
    token_ids,
)
from agentrl.learning.replay import to_stored
from agentrl.learning.rows import to_rows
from agentrl.store.contract import EpisodeFilter, EpisodeHead, EpisodeTail, StoredStep
from agentrl.store.sqlite import SQLiteStore

GROUP, A_STEP = 8, 64
CONTEXT, SAMPLED = 64, 48
DOCUMENT = (
    "Ouagadougou\ncountry: Burkina Faso\ntime zone: Africa/Ouagadougou\nnearest city: Koudougou\n" + "population: 1086505\n" * 8
)
SAID = "The capital is named in the second document, so I search for it first: <search>capital of Burkina {}</search>"
VERSION = Version("benchmark", "searcher", 0, "0" * 16)


def make_turn(index: int, before: list[IntArray], rng: np.random.Generator) -> Turn:
    """A turn that goes on from the tokens `before`; its state is one of a few, so that turns of a group meet."""
    context, sampled = token_ids(rng.integers(0, 50_000, CONTEXT)), token_ids(rng.integers(0, 50_000, SAMPLED))
    before += (context, sampled)
    parent = f":{2 * index - 2}" if index else None
    return Turn(
        id=f":{2 * index}",
        agent="searcher",
        index=index,
        policy="searcher",
        versions=(VersionSpan(VERSION, 0, SAMPLED),),
        parent=Parent(parent, (CONTEXT + SAMPLED) * index) if parent else None,
        predecessor=parent,
        branch="",
        context_ids=context,
        sampled_ids=sampled,
        logprobs=-rng.exponential(1.0, SAMPLED).astype(np.float32),
        logprobs_at="after_mask",
        finish="stop",
        sampling=Sampling(max_tokens=256),
        seed=int(rng.integers(0, 1 << 62)),
        text=SAID.format(rng.integers(0, 20)),
        digest=digest_ids(*before),
        segments=(Segment("tool", 0, CONTEXT - 6), Segment("generation", CONTEXT - 6, CONTEXT)),
        tokenizer="qwen3",
        template="qwen3-tools",
        state=State(before=f"{index}-{rng.integers(0, 3)}" + "0" * 24),
        valid=bool(rng.random() < 0.95),
        started=float(index),
        ended=index + 0.5,
    )


def make_effects(turns: int, rng: np.random.Generator) -> Iterator[Effect]:
    """The journal of one episode."""

    def effect(kind: EffectKind, name: str, position: int, value: object = None, turn: Turn | None = None) -> Effect:
        return Effect(
            EffectKey("", 0, position), kind, name, digest_request(position), f"{kind} {name} {position}",
            2 * position, 2 * position + 1, position / 2, value=value, turn=turn,
        )  # fmt: skip

    path: list[IntArray] = []
    for index in range(turns):
        yield effect("model", "searcher", 2 * index, turn=make_turn(index, path, rng))
        if index < turns - 1:
            called = {"query": f"capital of Burkina {rng.integers(0, 20)}"}
            value = {
                "turn": f":{2 * index}", "arguments": called, "status": "ok", "output": DOCUMENT, "started": index + 0.5,
                "ended": index + 0.6, "attempts": 1, "truncated": False, "call_id": "call_0", "data": {"documents": [index]},
            }  # fmt: skip
            yield effect("tool", "search", 2 * index + 1, value)
    yield effect("note", "stop", 2 * turns - 1, {"agent": "searcher", "reason": "answered"})


def make_store(path: Path, episodes: int) -> None:
    """Writes the episodes and then a learner step for each 64 of them."""
    rng = np.random.default_rng(0)
    with SQLiteStore(path) as store:
        for n in range(episodes):
            step, group = n // A_STEP, n // GROUP
            name = f"s{step:06d}.{group % (A_STEP // GROUP):03d}"
            task = {"text": f"capital of the country of the city {group}?", "answer": "Ouagadougou", "world": 1, "hops": 2}
            head = EpisodeHead(f"{name}.{n % GROUP}", name, n % GROUP, GROUP, task, n, "0" * 16, step=step, created=float(n))
            store.begin(head)
            store.append(head.id, tuple(make_effects(int(rng.integers(2, 5)), rng)))
            reward = Reward("reward", float(rng.random() < 0.4))
            store.finish(head.id, EpisodeTail("done", "Ouagadougou", (reward,), stops=(("searcher", "answered"),), seconds=2.0))
        store.flush_sync()
        for step in range(-(-episodes // A_STEP)):
            store.commit_step(learned(store, step))
        store.flush_sync()


def learned(store: SQLiteStore, step: int) -> StoredStep:
    """The step as a training with GRPO would commit it."""
    members: dict[str, list[Episode]] = {}
    for episode in store.episodes(EpisodeFilter(step=step)):
        members.setdefault(episode.group, []).append(episode)
    batch = to_batch([Group(name, None, tuple(found), GROUP) for name, found in members.items()])
    return StoredStep("searcher", step, to_stored(to_rows(batch, GRPO()(batch))), VERSION)


SELECT = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
for sql in ("SELECT * FROM episode", "SELECT * FROM tail", "SELECT * FROM effect ORDER BY episode, seq"):
    connection.execute(sql).fetchall()
"""


def best(command: Sequence[str], times: int) -> tuple[float, float]:
    """Wall and CPU seconds of a process, each the least of several."""
    walls, cpus = [], []
    for _ in range(times):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        walls.append(time.perf_counter() - began)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpus.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(walls), min(cpus)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=5000)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="where to write; default: a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        store = Path(name) / "store.db"
        make_store(store, arguments.episodes)
        python, credit = sys.executable, [sys.executable, "-m", "agentrl.cli", "credit", str(store)]
        rows = {
            "python + numpy": [python, "-c", "import numpy"],
            "the same and SELECT of the rows": [python, "-c", "import numpy" + SELECT, str(store)],
            "credit --with gtpo_turn --against gigpo": [*credit, "--with", "gtpo_turn", "--against", "gigpo"],
            "credit --with gigpo (against recorded)": [*credit, "--with", "gigpo"],
        }
        measured = {what: best(command, arguments.times) for what, command in rows.items()}
        size = store.stat().st_size / 2**20
    floor = measured["the same and SELECT of the rows"]
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    print(f"{arguments.episodes} episodes, {size:.0f} MiB; best of {arguments.times}; {load}")
    print(f"{'':42}{'wall s':>8}{'x floor':>9}{'CPU s':>8}{'x floor':>9}")
    for what, (wall, cpu) in measured.items():
        print(f"{what:42}{wall:8.2f}{wall / floor[0]:9.2f}{cpu:8.2f}{cpu / floor[1]:9.2f}")


if __name__ == "__main__":
    main()
