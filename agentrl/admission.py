"""Which groups a learner step may take, and how many may be under way: staleness is bounded, and nobody waits for stragglers.

    source ──begin──> in flight ──put──> ready ──take──> a batch of the learner
                                  └─────────┴──refused──> too old: kept in the store, never trained

A group is admitted iff learner step - oldest step whose weights drew one of its tokens <= max_staleness (Echo, arXiv
2508.05387). No more are begun than could be admitted if all of them ended now: served + 1 + max_staleness batches in all,
`served` being the batches learned from when the engine last took weights (AReaL, arXiv 2505.24298). With max_staleness=0
that is one batch at a time, in task order. Filled by `Training.sample`, drained by `Training.learn`; nothing waits here, and
no clock runs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic

from agentrl.episode import Group, Version
from agentrl.errors import UserError
from agentrl.experiment import Experiment
from agentrl.learning.contract import Learner, Row
from agentrl.tasks.contract import TaskSource, TaskT

Versions = Mapping[str, Version]
"""Those of the learners, by policy."""


@dataclass(slots=True)
class _Block:
    """A batch's worth of tasks as the source gave them at once; a resume asks for the same again."""

    before: Any
    settled: set[int] = field(default_factory=set[int])
    """Numbers of the groups that were trained or refused."""


class Admission(Generic[TaskT]):
    """Groups by number, from their task to the batch that trains them.

    Task i of the source's k-th batch has number k * size + i, in every process. Of groups that are ready those begun first are
    trained first. The task of a refused group comes again when the source gives it again. `batch` is the next to be trained,
    `steps` how many there are.
    """

    def __init__(self, source: TaskSource[TaskT], size: int, *, max_staleness: int = 0, steps: int, batch: int = 0) -> None:
        self._source, self._size, self._max_staleness, self._steps = source, size, max_staleness, steps
        self.taken = batch
        """Batches given to the learner, in this process and before."""
        self._blocks = 0
        self._open: dict[int, _Block] = {}
        self._waiting: deque[tuple[int, TaskT]] = deque()
        self._ready: dict[int, tuple[Group, dict[str, int]]] = {}
        self.in_flight = 0
        self.refused = 0
        """Groups refused so far."""

    @classmethod
    def of(cls, experiment: Experiment[Any, Any], source: TaskSource[Any], batch: int, state: Any = None) -> Admission[Any]:
        """That of a run whose next batch is `batch`; `state` is what the one before was committed with."""
        size, staleness = experiment.tasks_per_step, experiment.max_staleness
        admission = cls(source, size, max_staleness=staleness, steps=experiment.steps, batch=batch)
        if state is not None:
            admission.load(state)
        return admission

    def may_begin(self, served: int) -> bool:
        """Whether a group that is begun now, with the weights after `served` batches, could be trained with them."""
        batches = min(served + 1 + self._max_staleness, self._steps) - self.taken
        return self.in_flight + len(self._ready) < batches * self._size

    def begin(self) -> tuple[int, TaskT]:
        """The number and the task of the next group."""
        if not self._waiting:
            self._waiting.extend(self._take_block(self._blocks, self._source.state()))
            self._blocks += 1
        self.in_flight += 1
        return self._waiting.popleft()

    def put(self, number: int, group: Group, now: Versions) -> None:
        """A group has ended; it is ready, or refused."""
        self.in_flight -= 1
        self._ready[number] = group, oldest_steps(group, now)
        self.refuse(now)

    def refuse(self, now: Versions) -> None:
        """The learners have stepped: what has become too old goes."""
        for number in [number for number, (_, oldest) in self._ready.items() if not self._is_fresh(oldest, now)]:
            del self._ready[number]
            self._settle(number)
            self.refused += 1

    @property
    def ready(self) -> bool:
        """Whether `take` has a batch to give."""
        return len(self._ready) >= self._size

    def take(self) -> list[Group]:
        """The next batch: of all that is ready what was begun first, in that order. The source is told how it went."""
        numbers = sorted(self._ready)[: self._size]
        for number in numbers:
            self._settle(number)
        self.taken += 1
        groups = [self._ready.pop(number)[0] for number in numbers]
        self._source.update(groups)
        return groups

    def state(self) -> Any:
        """JSON from which `load` goes on: groups that are in flight or ready now are begun again, with the same numbers."""
        opened = [[number, block.before, sorted(block.settled)] for number, block in sorted(self._open.items())]
        return {"source": self._source.state(), "blocks": self._blocks, "open": opened}

    def load(self, state: Any) -> None:
        """Before anything is begun; also loads the source."""
        self._blocks = state["blocks"]
        for number, before, settled in state["open"]:
            self._source.load(before)
            tasks = self._take_block(number, before)
            self._open[number].settled.update(settled)
            self._waiting.extend((each, task) for each, task in tasks if each not in self._open[number].settled)
        self._source.load(state["source"])

    def _take_block(self, block: int, before: Any) -> list[tuple[int, TaskT]]:
        tasks = self._source.take(self._size)
        if len(tasks) != self._size:
            name = type(self._source).__name__
            raise UserError(f"the task source {name} gave {len(tasks)} tasks, wanted {self._size}; take(count) gives count")
        self._open[block] = _Block(before)
        return [(block * self._size + index, task) for index, task in enumerate(tasks)]

    def _settle(self, number: int) -> None:
        block = number // self._size
        self._open[block].settled.add(number)
        if len(self._open[block].settled) == self._size:
            del self._open[block]

    def _is_fresh(self, oldest: Mapping[str, int], now: Versions) -> bool:
        return all(now[policy].step - step <= self._max_staleness for policy, step in oldest.items())


def versions(learners: Mapping[str, Learner]) -> Versions:
    """Those that they have now."""
    return {name: learner.version for name, learner in learners.items()}


def oldest_steps(group: Group, now: Versions) -> dict[str, int]:
    """By policy the oldest learner step whose weights drew a token of the group's finished members.

    Tokens of frozen policies and of weights that are not this run's have no such step.
    """
    oldest: dict[str, int] = {}
    for episode in group.finished:
        for turn in episode.turns:
            for span in turn.versions:
                if turn.policy in now and span.version.lineage == now[turn.policy].lineage:
                    oldest[turn.policy] = min(span.version.step, oldest.get(turn.policy, span.version.step))
    return oldest


def staleness(rows: Sequence[Row], version: Version) -> dict[str, float]:
    """Learner steps between the weights that drew a trained token and those that learn from it: mean and maximum."""
    total, count, most = 0, 0, 0
    for row in rows:
        for turn in (trained.turn for trained in row.trained):
            for span in turn.versions:
                drawn = span.end - max(span.start, turn.forced)
                if drawn > 0 and span.version.lineage == version.lineage:
                    lag = version.step - span.version.step
                    total, count, most = total + lag * drawn, count + drawn, max(most, lag)
    return {"staleness/mean": total / max(1, count), "staleness/max": float(most)}
