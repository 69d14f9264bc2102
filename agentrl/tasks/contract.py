"""What a task source is: which task next? Its state is checkpointed with every learner step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from agentrl.episode import Group

TaskT = TypeVar("TaskT")
TaskT_co = TypeVar("TaskT_co", covariant=True)


class TaskSource(Protocol[TaskT_co]):
    """Gives tasks by batch. Deterministic in (seed, state, groups seen)."""

    def take(self, count: int) -> Sequence[TaskT_co]:
        """The next `count` tasks."""
        ...

    def update(self, groups: Sequence[Group]) -> None:
        """Learns from how groups went (curricula); many sources ignore it."""
        ...

    def state(self) -> Any:
        """JSON from which `load` goes on exactly here."""
        ...

    def load(self, state: Any) -> None: ...
