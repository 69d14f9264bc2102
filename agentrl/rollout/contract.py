"""What a rollout plan is: how the episodes of one task come about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol

from agentrl.effect import EffectKey
from agentrl.engines.contract import Offers
from agentrl.episode import Episode, Turn


class GroupRun(Protocol):
    """What a plan may do with one task. Every call gives an episode of the same group, whatever becomes of it."""

    @property
    def vocab_size(self) -> int:
        """Of the engine."""
        ...

    async def run(self, member: int) -> Episode:
        """A new episode, or the same one resumed if it was begun before a crash."""
        ...

    async def cut_before(self, of: Episode, turn: Turn) -> int:
        """The cut of a fork that shares all that had completed when `turn` was asked for, and draws that turn anew."""
        ...

    async def fork(
        self, member: int, of: Episode, cut: int, forced: Mapping[EffectKey, tuple[int, ...]] | None = None
    ) -> Episode:
        """An episode that shares with `of` every effect completed before `cut`, and goes on by itself from there.

        As with `run`, the same one resumed if it was begun before a crash.
        """
        ...


class RolloutPlan(Protocol):
    """A frozen dataclass with its own numbers as fields."""

    forks: ClassVar[bool]
    """Whether its episodes share turns."""
    columns: ClassVar[tuple[str, ...]]
    """Per-token columns that are recorded with every sampled turn, such as "entropy"; `needs` refuses an engine without."""

    @property
    def size(self) -> int:
        """Episodes of a group, when none is lost."""
        ...

    def needs(self, offers: Offers) -> str:
        """What the plan needs and the engine lacks; empty = nothing. Refused before the first token."""
        ...

    async def __call__(self, run: GroupRun) -> tuple[Episode, ...]:
        """The group's episodes, in the order of their members."""
        ...
