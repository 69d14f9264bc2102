"""How long every estimator takes on one learner step's columns, beside the least that any of them must do.

    OMP_NUM_THREADS=1 python benchmarks/estimators.py [--groups 64] [--members 16] [--turns 20] [--times 5]

The batch is made before the clock runs. The floor is one mean a group over the turns' rewards. An estimator that needs what
this batch does not hold (trees, probes, values) says so. Times are the best of several, CPU of the process.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from credit import make_turn

from agentrl.credit import ESTIMATORS, Batch, GiGPO, to_batch
from agentrl.episode import Episode, Group, IntArray, Reward, Turn
from agentrl.errors import UserError

GOAL_MS = 20.0


def make_batch(groups: int, members: int, turns: int) -> Batch:
    """Episodes of `turns` turns each, with states that meet and a reward at the end."""
    rng = np.random.default_rng(0)
    made: list[Group] = []
    for number in range(groups):
        episodes = tuple(make_episode(f"g{number}", member, turns, rng) for member in range(members))
        made.append(Group(f"g{number}", None, episodes, members))
    return to_batch(made)


def make_episode(group: str, member: int, turns: int, rng: np.random.Generator) -> Episode:
    path: list[IntArray] = []
    made: list[Turn] = [make_turn(index, path[-2:], rng) for index in range(turns)]
    reward = Reward("reward", float(rng.random() < 0.4))
    return Episode(f"{group}.{member}", group, None, 0, "0" * 16, "policy", "done", tuple(made), rewards=(reward,))


def best_ms(work: Callable[[], Any], times: int) -> float:
    """The least CPU-milliseconds of several calls."""
    found: list[float] = []
    for _ in range(times):
        begun = time.process_time()
        work()
        found.append(1e3 * (time.process_time() - begun))
    return min(found)


def floor(batch: Batch) -> np.ndarray[Any, Any]:
    """One mean a group."""
    group, reward = batch.turns.group, batch.turns.outcome
    return reward - (np.bincount(group, reward) / np.bincount(group))[group]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("groups", 64), ("members", 16), ("turns", 20), ("times", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    batch = make_batch(options.groups, options.members, options.turns)
    base = best_ms(lambda: floor(batch), options.times)
    print(f"{len(batch.turns)} turns of {len(batch.episodes)} episodes in {options.groups} groups; goal {GOAL_MS:g} ms\n")
    print(f"{'':<22}{'CPU ms':>9}{'x floor':>9}")
    print(f"{'floor: group means':<22}{base:>9.2f}{1:>9.0f}")
    named: dict[str, Any] = {name: make() for name, make in sorted(ESTIMATORS.items())}
    named["gigpo, similarity .95"] = GiGPO(similarity=0.95)
    for name, estimator in named.items():
        try:
            estimator(batch)
        except UserError as error:
            print(f"{name:<22}{'-':>9}{'':>9}  {error}"[:128])
            continue
        spent = best_ms(lambda estimator=estimator: estimator(batch), options.times)
        print(f"{name:<22}{spent:>9.2f}{spent / base:>9.0f}{'' if spent <= GOAL_MS else '  above the goal'}")


if __name__ == "__main__":
    main()
