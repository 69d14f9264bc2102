"""Entropy-triggered branches: rollouts that branch where the policy is uncertain after a tool's result."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar, Literal

import numpy as np

from agentrl.effect import derive_seed
from agentrl.engines.contract import Offers
from agentrl.episode import FINISHED, Episode, Turn
from agentrl.errors import UserError
from agentrl.rollout.contract import GroupRun
from agentrl.rollout.tree import branch

ENTROPY = "entropy"
"""Name of the column with the entropy of each token's distribution, in nats."""


@dataclass(frozen=True, slots=True)
class EntropyTree:
    """Sampling of ARPO (arXiv 2507.19849): `initial` rollouts; the rest of `size` branch at turns that follow a tool's result.

    H of a turn is the sum of the entropies of its first `tokens` tokens over log |V|; its rise is H minus that of the
    episode's first turn. `rule="drawn"` is the authors' code: branch if clip(u - weight * rise, 0, 1) <= probability, u
    uniform; "threshold" is the paper's: probability + weight * rise > threshold. A turn gives at most `beam` - 1 branches,
    earlier turns come first. Where nothing branches and room is left, one fresh rollout follows another.

    Unlike in the authors' code, H is of the turn after the tool's result, not of the one before it; entropies are over the
    whole vocabulary where the engine gives that, not over the ten likeliest tokens; and no leaf is given twice. A branch begins
    when the rollouts before it have ended, which changes nothing of what it is.
    """

    size: int = 16
    initial: int = 8
    beam: int = 2
    probability: float = 0.5
    weight: float = 0.2
    tokens: int = 20
    rule: Literal["drawn", "threshold"] = "drawn"
    threshold: float = 0.5
    forks: ClassVar[bool] = True
    whole: ClassVar[bool] = True
    exact: ClassVar[bool] = True
    columns: ClassVar[tuple[str, ...]] = (ENTROPY,)

    def __post_init__(self) -> None:
        for name, least in (("initial", 1), ("size", 1), ("beam", 2), ("tokens", 1)):
            if getattr(self, name) < least:
                raise UserError(f"EntropyTree: {name} must be >= {least}, got {getattr(self, name)}")

    def needs(self, offers: Offers) -> str:
        if ENTROPY in offers.columns:
            return ""
        return "it branches where entropy rises, and the engine gives no entropy; --set rollout=random_tree, or engine=local"

    async def __call__(self, run: GroupRun) -> tuple[Episode, ...]:
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(run.run(member), name=f"leaf-{member}") for member in range(min(self.initial, self.size))
            ]
        latest = [(episode.result(), 0) for episode in running]
        leaves = [episode for episode, _ in latest]
        while len(leaves) < self.size:
            places = self._places(latest, run.vocab_size)[: self.size - len(leaves)]
            begun = len(leaves)
            if places:
                async with asyncio.TaskGroup() as tasks:
                    forks = [
                        tasks.create_task(branch(run, begun + n, of, of.turns[at]), name=f"leaf-{begun + n}")
                        for n, (of, at) in enumerate(places)
                    ]
                latest = [(fork.result(), at + 1) for fork, (_, at) in zip(forks, places, strict=True)]
            else:
                latest = [(await run.run(begun), 0)]
            leaves.extend(episode for episode, _ in latest)
        return tuple(leaves)

    def _places(self, latest: Sequence[tuple[Episode, int]], vocab_size: int) -> list[tuple[Episode, int]]:
        """Where these episodes branch, in turns from the given one on; by turn, then by episode, once for each branch."""
        found: list[tuple[int, int, Episode]] = []
        for order, (episode, start) in enumerate(latest):
            if episode.status not in FINISHED or not episode.turns:
                continue
            before = entropy(episode.turns[0], self.tokens, vocab_size)
            for at, turn in enumerate(episode.turns):
                if at < max(start, 1) or not _follows_tool(episode, turn):
                    continue
                rise = entropy(turn, self.tokens, vocab_size) - before
                random = Random(derive_seed(episode.seed, turn.id, "branch"))
                branches = sum(self.branches(rise, random.random()) for _ in range(self.beam - 1))
                found.extend([(at, order, episode)] * branches)
        found.sort(key=lambda place: place[:2])
        return [(episode, at) for at, _, episode in found]

    def branches(self, rise: float, uniform: float) -> bool:
        """Whether a turn whose entropy rose so much branches, for a number drawn from [0, 1)."""
        if self.rule == "threshold":
            return self.probability + self.weight * rise > self.threshold
        return min(max(uniform - self.weight * rise, 0.0), 1.0) <= self.probability


def entropy(turn: Turn, tokens: int, vocab_size: int) -> float:
    """Sum of the entropies of the turn's first drawn tokens, in units of log |V|."""
    return float(np.sum(turn.columns[ENTROPY].values[turn.forced :][:tokens], dtype=np.float64)) / math.log(vocab_size)


def _follows_tool(episode: Episode, turn: Turn) -> bool:
    return turn.parent is not None and bool(episode.by_id[turn.parent.turn].tool_calls)
