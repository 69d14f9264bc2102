"""What a rollout plan is: how the episodes of one task come about."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractAsyncContextManager
from typing import ClassVar, Protocol, runtime_checkable

from agentrl.effect import EffectKey
from agentrl.engines.contract import Offers
from agentrl.episode import Episode, Turn


class GroupRun(Protocol):
    """What a plan may do with one task. Every call gives an episode of the same group, whatever becomes of it."""

    @property
    def vocab_size(self) -> int:
        """Of the engine."""
        ...

    @property
    def seed(self) -> int:
        """Of the group: what a plan draws by itself is derived from it, and so drawn the same again."""
        ...

    @property
    def trained(self) -> Collection[str]:
        """Names of the policies that learn."""
        ...

    async def run(self, member: int) -> Episode:
        """A new episode, or the same one resumed if it was begun before a crash."""
        ...

    async def reference(self, member: int, refresh: int = 0) -> Episode:
        """An episode in which the reference policy plays every trained role (`agentrl.runtime.references`).

        It is sampled once a task: in a later group of the task it is a copy of what this member did then, which pays for
        nothing. With `refresh` that counts for so many learner steps.
        """
        ...

    async def demonstration(self, episodes: str, least: float | None = None) -> Episode | None:
        """A finished episode of the task from another run, store or exported file, as one that `fork` may begin inside.

        Drawn by the group's seed among those with a reward of at least `least`. None = there is none, or the workflow as it
        is now cannot be led through it (`agentrl.runtime.demonstrations`). It is in no group.
        """
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

    def line(
        self, member: int, of: Episode | None = None, cut: int = 0, forced: Mapping[EffectKey, tuple[int, ...]] | None = None
    ) -> AbstractAsyncContextManager[Led]:
        """As `run`, or with `of` as `fork`, of an episode that stands still before each model call.

        A led fork stands first before the model call that it draws anew, not before those that it shares.
        """
        ...

    def decode(self, turn: Turn, tokens: int) -> str:
        """The text of the first `tokens` sampled tokens of a turn."""
        ...


def kept_of(turn: Turn, kept: int) -> dict[EffectKey, tuple[int, ...]]:
    """`forced` of a fork that draws `turn` anew behind its first `kept` sampled tokens."""
    position = int(turn.id.rpartition(":")[2])
    return {EffectKey(turn.branch, 0, position): tuple(turn.sampled_ids[:kept].tolist())} if kept else {}


class Led(Protocol):
    """An episode that a plan leads from one model call to the next (`agentrl.runtime.line`)."""

    @property
    def episode(self) -> Episode:
        """All of it that happened before the point, or the whole of one that has ended."""
        ...

    async def point(self) -> int | None:
        """Waits for the next model call. The cut of a fork that shares all before it; None = the episode has ended."""
        ...

    def go_on(self) -> None:
        """Lets the model call begin that it stands before."""
        ...

    def run_on(self) -> None:
        """From here on it stands still no more."""
        ...

    async def stop(self) -> None:
        """Ends it here for good, with status "stopped"."""
        ...

    async def ended(self) -> Episode:
        """Waits for its end."""
        ...


class RolloutPlan(Protocol):
    """A frozen dataclass with its own numbers as fields."""

    forks: ClassVar[bool]
    """Whether its episodes share turns."""
    whole: ClassVar[bool]
    """Whether every episode runs to its own end; else some are stopped."""
    exact: ClassVar[bool]
    """Whether a group has `size` episodes in any case; else that is the most."""
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


@runtime_checkable
class PlaysReference(Protocol):
    """A plan whose groups hold episodes of the reference policy too; `Experiment.reference` is served beside the others."""

    @property
    def references(self) -> int:
        """How many of a group's `size`."""
        ...


@runtime_checkable
class FromDemonstrations(Protocol):
    """A plan whose episodes may begin inside a demonstration."""

    @property
    def episodes(self) -> str:
        """The run, store or exported file that holds the demonstrations."""
        ...

    @property
    def least(self) -> float | None:
        """The least reward of a demonstration; None = any."""
        ...
