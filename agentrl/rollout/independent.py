"""Independent rollouts: n episodes that know nothing of each other."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import ClassVar

from agentrl.engines.contract import Offers
from agentrl.episode import Episode
from agentrl.errors import UserError
from agentrl.rollout.contract import GroupRun


@dataclass(frozen=True, slots=True)
class Independent:
    """`size` episodes of each task, all at once."""

    size: int = 8
    forks: ClassVar[bool] = False
    whole: ClassVar[bool] = True
    exact: ClassVar[bool] = True
    columns: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"a group needs at least one episode, got Independent({self.size})")

    def needs(self, offers: Offers) -> str:
        return ""

    async def __call__(self, run: GroupRun) -> tuple[Episode, ...]:
        async with asyncio.TaskGroup() as tasks:
            members = [tasks.create_task(run.run(member), name=f"member-{member}") for member in range(self.size)]
        return tuple(member.result() for member in members)
