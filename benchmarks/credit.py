"""How long credit takes: every estimator on one learner step's columns, and `agentrl credit` as a process.

    OMP_NUM_THREADS=1 python benchmarks/credit.py [--groups 64] [--members 16] [--turns 20] [--times 5]
                                                  [--episodes 5000] [--folder DIR]

The batch is made before the clock runs, and holds what the methods read: states, probes, values, reference rewards; for those
that compare rollouts that branch, trees of 4 leaves with shared turns. The floor is one mean a group. What compares texts, or
gives each token a number of its own, stands apart. CPU of the process, the best of several.

`agentrl credit` stands beside what cannot be saved: Python, numpy, and SELECT of the same rows. The store is a real one: groups
of 8, 64 episodes a learner step, 2 to 4 turns an episode, a search with its document by each turn but the last, a stop note,
states, 64 + 48 tokens a turn with log-probs, the rewards at the end, and the rows that each step trained on with GRPO. The best
of several, a process each. `--episodes 0` leaves it out.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from credit_batches import VERSION, make_batch, make_trees, make_turn

from agentrl.credit import ESTIMATORS, GAE, GRPO, IGPO, Batch, GiGPO, to_batch
from agentrl.effect import Effect, EffectKey, EffectKind, digest_request
from agentrl.episode import Episode, Group, IntArray, Reward, Turn
from agentrl.learning.replay import to_stored
from agentrl.learning.rows import to_rows
from agentrl.store.contract import EpisodeFilter, EpisodeHead, EpisodeTail, StoredStep
from agentrl.store.sqlite import SQLiteStore

GOAL_MS = 20.0
GROUP, A_STEP = 8, 64
DOCUMENT = (
    "Ouagadougou\ncountry: Burkina Faso\ntime zone: Africa/Ouagadougou\nnearest city: Koudougou\n" + "population: 1086505\n" * 8
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


def compare_processes(episodes: int, times: int, folder: Path | None) -> None:
    """Prints the table of `agentrl credit` beside its floor."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        store = Path(name) / "store.db"
        make_store(store, episodes)
        python, credit = sys.executable, [sys.executable, "-m", "agentrl.cli", "credit", str(store)]
        rows = {
            "python + numpy": [python, "-c", "import numpy"],
            "the same and SELECT of the rows": [python, "-c", "import numpy" + SELECT, str(store)],
            "credit --with gtpo_turn --against gigpo": [*credit, "--with", "gtpo_turn", "--against", "gigpo"],
            "credit --with gigpo (against recorded)": [*credit, "--with", "gigpo"],
        }
        measured = {what: best(command, times) for what, command in rows.items()}
        size = store.stat().st_size / 2**20
    floor = measured["the same and SELECT of the rows"]
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    print(f"\n{episodes} episodes, {size:.0f} MiB; best of {times}; {load}")
    print(f"{'':42}{'wall s':>8}{'x floor':>9}{'CPU s':>8}{'x floor':>9}")
    for what, (wall, cpu) in measured.items():
        print(f"{what:42}{wall:8.2f}{wall / floor[0]:9.2f}{cpu:8.2f}{cpu / floor[1]:9.2f}")


def best_ms(work: Callable[[], Any], times: int) -> float:
    """The least CPU-milliseconds of several calls."""
    found: list[float] = []
    for _ in range(times):
        begun = time.process_time()
        work()
        found.append(1e3 * (time.process_time() - begun))
    return min(found)


def group_means(batch: Batch) -> np.ndarray[Any, Any]:
    """One mean a group."""
    group, reward = batch.turns.group, batch.turns.outcome
    return reward - (np.bincount(group, reward) / np.bincount(group))[group]


def compare_estimators(groups: int, members: int, turns: int, times: int) -> None:
    """Prints the table of the estimators beside their floor."""
    plain, trees = make_batch(groups, members, turns), make_trees(groups, members, turns)
    named: dict[str, Any] = {name: make() for name, make in sorted(ESTIMATORS.items())}
    apart: dict[str, Any] = {
        "gigpo, similarity 0.95": GiGPO(similarity=0.95),
        "gae, over tokens": GAE(over="token"),
        "igpo, released form": IGPO(form="released"),
    }
    base = best_ms(lambda: group_means(plain), times)
    print(f"{len(plain.turns)} turns of {len(plain.episodes)} episodes in {groups} groups; goal {GOAL_MS:g} ms\n")
    print(f"{'':<24}{'CPU ms':>9}{'x floor':>9}  batch\n{'floor: group means':<24}{base:>9.2f}{1:>9.0f}")
    for name, estimator in (named | apart).items():
        batch = trees if estimator.needs.forks else plain
        spent = best_ms(lambda estimator=estimator, batch=batch: estimator(batch), 1 if name in apart else times)
        told = "apart" if name in apart else "" if spent <= GOAL_MS else "above the goal"
        print(f"{name:<24}{spent:>9.2f}{spent / base:>9.0f}  {'trees' if batch is trees else 'plain'}  {told}".rstrip())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("groups", 64), ("members", 16), ("turns", 20), ("times", 5), ("episodes", 5000)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--folder", type=Path, default=None, help="where to write the store; default: a temporary folder")
    given = parser.parse_args()
    compare_estimators(given.groups, given.members, given.turns, given.times)
    if given.episodes:
        compare_processes(given.episodes, given.times, given.folder)


if __name__ == "__main__":
    main()
