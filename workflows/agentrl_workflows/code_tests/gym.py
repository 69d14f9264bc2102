"""reasoning-gym's generated problems (package reasoning-gym, Apache-2.0): the agent computes with Python, the data set scores.

agentrl train code_gym --set policies.model=FOLDER --out runs/gym
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from agentrl import Agent, Episode, Experiment, Policy, Team, workflow
from agentrl.credit import GiGPO
from agentrl.errors import UserError, capture
from agentrl.rollout import Independent
from agentrl.tasks import Uniform
from agentrl_sandboxes.process import Process
from agentrl_tools.python import Python

DATASETS = ("prime_factorization", "lcm", "gcd", "base_conversion", "number_sorting", "count_primes", "chain_sum", "products")
"""Those of which a few lines of Python find the answer."""
SYSTEM = "Compute with the tool `python`, then answer with the result alone."
HELD_OUT = 10_000
"""Indices from here on are held out."""


@dataclass(frozen=True)
class GymTask:
    """The problem `index` of a data set of this seed: that is enough to make it again, and to score it."""

    text: str
    dataset: str
    seed: int
    index: int


def gym_tasks(datasets: Sequence[str], count: int, *, seed: int = 0, first: int = 0) -> list[GymTask]:
    """`count` problems that take turns in their data set, from index `first` on."""
    if count < 1 or not datasets:
        raise UserError(f"ask for at least one problem of at least one data set, got count={count}, {tuple(datasets)}")
    places = [(datasets[at % len(datasets)], first + at // len(datasets)) for at in range(count)]
    return [GymTask(_dataset(name, seed)[index]["question"], name, seed, index) for name, index in places]


@lru_cache(maxsize=64)
def _dataset(name: str, seed: int) -> Any:
    try:
        gym = importlib.import_module("reasoning_gym")
    except ModuleNotFoundError as error:
        raise UserError("these problems are made by the package reasoning-gym: pip install reasoning-gym") from error
    try:
        return gym.create_dataset(name, seed=seed, size=2 * HELD_OUT)
    except ValueError as error:
        raise UserError(f"reasoning-gym has no data set {name!r}: {error}") from error


@workflow(Agent("coder", system=SYSTEM, max_turns=6, max_tokens=256))
async def compute(task: GymTask, team: Team) -> str:
    """Runs code over several turns, then answers."""
    async with team.sandbox() as box:
        return (await team["coder"].run(task.text, tools=[Python(box)])).text.strip()


def score(task: GymTask, output: str, episode: Episode) -> float:
    """As the data set scores, 0 to 1; 0 for an answer that its scorer cannot read (some raise then)."""
    data = _dataset(task.dataset, task.seed)
    with capture():
        return float(data.score_answer(output, data[task.index]))
    return 0.0


def gym(model: str | Path = "smollm2", *, seed: int = 0, steps: int = 100) -> Experiment[GymTask, str]:
    """Reinforcement learning on `DATASETS`; held out are 200 problems that training does not have."""
    tasks = gym_tasks(DATASETS, 4096, seed=seed)
    known = {task.text for task in tasks}
    others = (task for task in gym_tasks(DATASETS, 400, seed=seed, first=HELD_OUT) if task.text not in known)
    return Experiment(
        compute,
        reward=score,
        tasks=Uniform(tasks),
        held_out=list(islice(others, 200)),
        rollout=Independent(8),
        credit=GiGPO(),
        policies=Policy("coder", model=model),
        sandbox=Process(),
        steps=steps,
        seed=seed,
    )
