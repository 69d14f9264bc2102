"""Every task once an epoch, in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any, Generic

from agentrl.effect import derive_seed
from agentrl.episode import Group
from agentrl.errors import UserError
from agentrl.tasks.contract import TaskT


class Uniform(Generic[TaskT]):
    """Tasks drawn without replacement, epoch after epoch; with `shuffle=False` in the order given."""

    def __init__(self, tasks: Sequence[TaskT], *, seed: int = 0, shuffle: bool = True) -> None:
        if not len(tasks):
            raise UserError("a task source needs at least one task, got none")
        self._tasks = tasks
        self._seed = seed
        self._shuffle = shuffle
        self._taken = 0
        self._epoch = -1
        self._order: list[int] = []

    def take(self, count: int) -> list[TaskT]:
        return [self._tasks[index] for index in self._indices(count)]

    def update(self, groups: Sequence[Group]) -> None:
        """Looks at nothing."""

    def state(self) -> Any:
        return {"taken": self._taken}

    def load(self, state: Any) -> None:
        self._taken = int(state["taken"])

    def _indices(self, count: int) -> Iterator[int]:
        for _ in range(count):
            epoch, at = divmod(self._taken, len(self._tasks))
            if epoch != self._epoch:
                self._order = list(range(len(self._tasks)))
                if self._shuffle:
                    random.Random(derive_seed("epoch", self._seed, epoch)).shuffle(self._order)
                self._epoch = epoch
            self._taken += 1
            yield self._order[at]
