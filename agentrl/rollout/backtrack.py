"""Backtrack: a turn whose tool call failed is taken again, from before the call."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from agentrl.effect import derive_seed
from agentrl.engines.contract import Offers
from agentrl.episode import FINISHED, Episode, Turn
from agentrl.errors import UserError
from agentrl.rollout.contract import GroupRun, kept_of


@dataclass(frozen=True, slots=True)
class Backtrack:
    """`rollouts` whole episodes; then one turn of the group with a failed tool call is taken again `retries` times.

    Sampling of THOR (arXiv 2509.13761), credited by `THOR`. The turn is the last one of a drawn episode that called a tool in
    vain; if no call of the group failed, any turn that called one. It is kept up to `drop` tokens before its last `opening`,
    what a call begins with in the policy's format, and goes on from there until its tools have answered; there the episode is
    stopped. Where `opening` does not occur, or stands within the first `drop` tokens, the whole turn is drawn anew.

    The authors take as many failed episodes as a batch has tasks, here it is one a group; a group without tool calls has
    `rollouts` episodes and no more.
    """

    rollouts: int = 16
    retries: int = 16
    drop: int = 100
    opening: str = "<tool_call>"
    forks: ClassVar[bool] = True
    whole: ClassVar[bool] = False
    exact: ClassVar[bool] = False
    columns: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name, least in (("rollouts", 1), ("retries", 2), ("drop", 0)):
            if getattr(self, name) < least:
                raise UserError(f"Backtrack: {name} must be >= {least}, got {getattr(self, name)}")
        if not self.opening:
            raise UserError('Backtrack: opening is what a tool call begins with, such as "<tool_call>" or "```python"; got ""')

    @property
    def size(self) -> int:
        """The most episodes of a group."""
        return self.rollouts + self.retries

    def needs(self, offers: Offers) -> str:
        if offers.forced_prefix:
            return ""
        return (
            "it goes on from inside a turn, and the engine takes no forced prefix; --set rollout=independent, or engine=local"
        )

    async def __call__(self, run: GroupRun) -> tuple[Episode, ...]:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(run.run(member), name=f"member-{member}") for member in range(self.rollouts)]
        episodes = [member.result() for member in running]
        place = _place(episodes)
        if place is None:
            return tuple(episodes)
        of, turn = place
        kept = self.kept(run, turn)
        async with asyncio.TaskGroup() as tasks:
            again = [
                tasks.create_task(_take_again(run, self.rollouts + n, of, turn, kept), name=f"retry-{n}")
                for n in range(self.retries)
            ]
        return (*episodes, *(retry.result() for retry in again))

    def kept(self, run: GroupRun, turn: Turn) -> int:
        """How many of the turn's sampled tokens stay."""
        count = len(turn.sampled_ids)
        wanted = run.decode(turn, count).count(self.opening)
        if not wanted:
            return 0
        begins = bisect_left(range(count + 1), wanted, key=lambda n: run.decode(turn, n).count(self.opening))
        while begins and run.decode(turn, begins - 1).endswith(tuple(self.opening[:n] for n in range(1, len(self.opening)))):
            begins -= 1  # an opening of several tokens
        return max(begins - 1 - self.drop, 0)


def _place(episodes: list[Episode]) -> tuple[Episode, Turn] | None:
    """An episode and its last turn that failed; without one, its last turn that called a tool."""
    called = [
        (episode, turn)
        for episode in episodes
        if episode.status in FINISHED
        for turn in episode.turns
        if turn.trainable and turn.tool_calls
    ]
    if not called:
        return None
    failed = [(episode, turn) for episode, turn in called if any(call.status != "ok" for call in turn.tool_calls)]
    last = {episode.id: (episode, turn) for episode, turn in failed or called}
    return Random(derive_seed(episodes[0].seed, "backtrack")).choice(list(last.values()))


async def _take_again(run: GroupRun, member: int, of: Episode, turn: Turn, kept: int) -> Episode:
    """A fork of `of` that draws `turn` anew behind its first `kept` tokens, and is stopped when its tools have answered."""
    async with run.line(member, of, await run.cut_before(of, turn), kept_of(turn, kept)) as line:
        await line.point()
        line.go_on()
        if await line.point() is not None:
            await line.stop()
        return await line.ended()
