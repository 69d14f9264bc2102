"""Resets: rollouts that begin inside a demonstration of their task."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar, Literal, TypeAlias

from agentrl.effect import derive_seed
from agentrl.engines.contract import Offers
from agentrl.episode import Episode, Turn
from agentrl.errors import UserError
from agentrl.rollout.contract import GroupRun, kept_of

_Place: TypeAlias = tuple[Turn, int]
"""A turn that is drawn anew, and how many of its tokens are kept."""


@dataclass(frozen=True, slots=True)
class DatasetReset:
    """`size` episodes, each of which begins inside a demonstration of the task with probability `share`.

    Demonstrations are finished episodes of the same task in `episodes`: a run, a store, or a file that `agentrl export` wrote;
    with `least`, those of at least this reward. Everything before the cut is given: shared turns and forced tokens are never
    trained, their tools are not called again. Without a demonstration a task has plain rollouts.

    DR-PO (arXiv 2404.08495, and its code): the cut stands behind k of the n tokens that the trained roles said in the
    demonstration, k uniform in 1 .. n - 1, none if n < 2. `cuts="random"` draws k for each rollout, as they do; "same" once for
    the group, for rollouts from different places are no group to compare. "each" begins at the demonstration's turns in order,
    the first (the whole task) included: the prefixes of Tree-OPO (arXiv 2509.09284), whose teacher's tree is here one path.
    """

    episodes: str = ""
    size: int = 8
    share: float = 1.0
    cuts: Literal["same", "random", "each"] = "same"
    least: float | None = None
    forks: ClassVar[bool] = True
    whole: ClassVar[bool] = True
    exact: ClassVar[bool] = True
    columns: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"DatasetReset: size must be >= 1, got {self.size}")
        if not 0 <= self.share <= 1:
            raise UserError(f"DatasetReset: share is a probability, got {self.share}")

    def needs(self, offers: Offers) -> str:
        if not self.episodes:
            return "it has no demonstrations; --set rollout.episodes=RUN, a run, a store or an exported file"
        if self.cuts == "each" or offers.forced_prefix:
            return ""
        return "it goes on from inside a turn, and the engine takes no forced prefix; --set rollout.cuts=each, or engine=local"

    async def __call__(self, run: GroupRun) -> tuple[Episode, ...]:
        shown = await run.demonstration(self.episodes, self.least)
        said = [turn for turn in shown.turns if turn.policy in run.trained and len(turn.sampled_ids)] if shown else []
        async with asyncio.TaskGroup() as tasks:
            members = [
                tasks.create_task(_rollout(run, member, shown, self.place(said, run.seed, member)), name=f"member-{member}")
                for member in range(self.size)
            ]
        return tuple(member.result() for member in members)

    def place(self, said: Sequence[Turn], seed: int, member: int) -> _Place | None:
        """Where a member of a group begins in the demonstration's turns of trained roles; None = with the task."""
        random = Random(derive_seed(seed, "reset", 0 if self.cuts == "same" else member))
        chance = random.random()
        if self.cuts == "each":
            return (said[member % len(said)], 0) if said and chance < self.share else None
        kept = roll_in(sum(len(turn.sampled_ids) for turn in said), self.share, chance, random.randrange)
        if not kept:
            return None
        for turn in said:
            if kept < len(turn.sampled_ids):
                return turn, kept
            kept -= len(turn.sampled_ids)
        raise AssertionError("roll_in keeps fewer tokens than there are")


def roll_in(length: int, share: float, chance: float, draw: Callable[[int, int], int]) -> int:
    """How many of a demonstration's `length` tokens are given: 0, or with probability `share` one of 1 .. length - 1.

    `chance` is uniform in [0, 1), `draw(a, b)` uniform in a .. b - 1. The last token, which ends it, is never among them.
    """
    return draw(1, length) if chance < share and length >= 2 else 0


async def _rollout(run: GroupRun, member: int, shown: Episode | None, place: _Place | None) -> Episode:
    if shown is None or place is None:
        return await run.run(member)
    turn, kept = place
    return await run.fork(member, shown, await run.cut_before(shown, turn), kept_of(turn, kept))
