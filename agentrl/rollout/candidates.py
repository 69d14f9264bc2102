"""Candidates: at each turn several ways to go on; the best goes on, the others are stopped."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import ClassVar

from agentrl.engines.contract import Offers
from agentrl.episode import FINISHED, Episode
from agentrl.errors import UserError
from agentrl.rollout.contract import GroupRun, Led


@dataclass(frozen=True, slots=True)
class Candidates:
    """Each of the first `turns` model calls of an episode is drawn `candidates` times from one state.

    Sampling of AT-GRPO (arXiv 2510.11062), as in the paper. The candidates run live, each with the world as it made it, to the
    next reward point: the first model call after a reward was given, or the end. The one with the greatest alpha team + local
    goes on (local is what any agent was given by name; ties: the first drawn), the others are stopped. None is run again: the
    winner's next turn is drawn where it stands. A lost candidate never wins; when all are lost the group ends there.

    A group has 1 + n (candidates - 1) episodes for the n turns that were drawn so, at most `size`: each loser is an episode
    that shares the turns before its own. `ATGRPO` compares the turns drawn in one place. Turns beyond `turns` are drawn once.

    For workflows whose agents act in turn: two model calls at once end the episode with that reason. A group takes one place
    of `limits.concurrency`, whatever it holds.
    """

    candidates: int = 4
    turns: int = 4
    alpha: float = 1.0
    forks: ClassVar[bool] = True
    whole: ClassVar[bool] = False
    exact: ClassVar[bool] = False
    columns: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name, least in (("candidates", 2), ("turns", 1)):
            if getattr(self, name) < least:
                raise UserError(f"Candidates: {name} must be >= {least}, got {getattr(self, name)}")

    @property
    def size(self) -> int:
        """The most episodes of a group."""
        return 1 + self.turns * (self.candidates - 1)

    def needs(self, offers: Offers) -> str:
        return ""

    async def __call__(self, run: GroupRun) -> tuple[Episode, ...]:
        async with AsyncExitStack() as lines:
            group = [await lines.enter_async_context(run.line(0))]
            best = group[0]
            for _ in range(self.turns):
                cut = await best.point()
                if cut is None:
                    break
                here = best.episode
                rivals = [
                    await lines.enter_async_context(run.line(len(group) + n, here, cut)) for n in range(self.candidates - 1)
                ]
                group += rivals
                best = await self._best([best, *rivals], len(_given(here)))
            best.run_on()
            return tuple([await line.ended() for line in group])

    async def _best(self, rivals: Sequence[Led], before: int) -> Led:
        """Lets all take their turn and go on to a reward; stops those that do not win."""
        async with asyncio.TaskGroup() as tasks:
            for rival in rivals:
                tasks.create_task(_until_rewarded(rival, before))
        scores = [self.score(rival.episode) for rival in rivals]
        best = rivals[scores.index(max(scores))]
        async with asyncio.TaskGroup() as tasks:
            for rival in rivals:
                if rival is not best:
                    tasks.create_task(rival.stop())
        return best

    def score(self, episode: Episode) -> float:
        """alpha team + local of all that was given so far; what candidates share adds the same to each."""
        if episode.status not in (*FINISHED, "running"):
            return -math.inf
        return math.fsum((self.alpha if local is None else 1.0) * value for value, local in _given(episode))


async def _until_rewarded(line: Led, before: int) -> None:
    """To the first model call at which more than `before` rewards were given, or to the end."""
    await line.point()
    line.go_on()
    while await line.point() is not None and len(_given(line.episode)) <= before:
        line.go_on()


def _given(episode: Episode) -> list[tuple[float, str | None]]:
    """Each reward and the agent that it was given to; None = the team."""
    return [(reward.value, reward.agent) for part in (*episode.turns, episode) for reward in part.rewards]
