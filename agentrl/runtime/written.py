"""The effects of one episode as they are written: in the order of one counter, by one clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic

from agentrl.effect import Effect, EffectKey, EffectStatus
from agentrl.errors import record_error
from agentrl.runtime.pending import Pending
from agentrl.runtime.record import Record
from agentrl.workflow import Outcome


class Written:
    """What was on record, and what is added to it."""

    __slots__ = ("_sequence", "_write", "_zero", "effects", "keeps_lost")

    def __init__(self, effects: Sequence[Effect], record: Record, write: Callable[[Effect], None]) -> None:
        self.effects: list[Effect] = list(effects)
        self.keeps_lost = True
        """Whether what was paid for nothing is written, too: not in a replay, nor while an episode is put aside."""
        self._sequence = record.sequence
        self._zero = monotonic() - record.lasted
        self._write = write

    def tick(self) -> int:
        """The next number of the episode's counter."""
        sequence = self._sequence
        self._sequence = sequence + 1
        return sequence

    def at(self) -> float:
        """Seconds that the episode has lived, in this process and before."""
        return monotonic() - self._zero

    def write(self, pending: Pending, status: EffectStatus, outcome: Outcome, error: BaseException | None = None) -> None:
        """Adds how an effect ended."""
        branch, position = pending.place
        issued = pending.issued if pending.issued >= 0 else self.tick()
        entry = Effect(
            EffectKey(branch, pending.attempt, position), pending.kind, pending.name, pending.request, pending.note, issued,
            self.tick(), self.at(), status, record_error(error) if error is not None else outcome.value, outcome.turn,
            outcome.blobs, outcome.costs,
        )  # fmt: skip
        self.effects.append(entry)
        self._write(entry)

    def lose(self, pending: Pending, outcome: Outcome, error: BaseException | None) -> None:
        """Adds what was paid for and never handed to the workflow."""
        if self.keeps_lost:
            self.write(pending, "lost", outcome, error)

    def intend(self, pending: Pending) -> None:
        """Adds that something which outlives the process is about to begin."""
        key = EffectKey(pending.place[0], pending.attempt, pending.place[1])
        entry = Effect(key, pending.kind, pending.name, pending.request, pending.note, pending.issued, -1, self.at(), "intent")
        self.effects.append(entry)
        self._write(entry)
