"""What is on record of an episode before it runs: nothing if it is new; else the walk that its code is led through again."""

from __future__ import annotations

from collections.abc import Sequence

from agentrl.effect import Effect
from agentrl.runtime.pending import Pending, Place, told

EDITED = "edited"
"""Name of the note at the head of an edited fork's own effects; what it speaks of is not from this code's own past."""

PROBED = "probe"
"""Branch of the scores that the runtime asked for when the episode had ended; no task of a workflow has such a path."""


class Record:
    """Effects in the order in which they were handed in. Lost ones and intents are passed over, for nobody was told of them."""

    __slots__ = ("_edited", "_entries", "_made", "_next", "_places", "attempts", "intents", "lasted", "sequence")

    def __init__(self, effects: Sequence[Effect]) -> None:
        self._made: set[Place] = set()
        self._next = 0
        self.attempts: dict[Place, int] = {}
        """How many failed attempts of an effect are on record."""
        self.sequence = 0
        """The first number that is free."""
        self.lasted = 0.0
        """Seconds of the episode that it covers."""
        self.intents: set[Place] = set()
        """What was begun, outlives the process, and has no end on record."""
        self._entries: list[Effect] = []
        self._places: dict[Place, Effect] = {}
        self._edited: set[Place] = set()
        """The effects with which an edited fork began, before anything of its own was asked for."""
        if effects:
            self._read(effects)

    def _read(self, effects: Sequence[Effect]) -> None:
        handed_in = [
            effect for effect in effects if effect.completed >= 0 and effect.status != "lost" and effect.key.branch != PROBED
        ]
        for note in [effect for effect in handed_in if effect.kind == "note" and effect.name == EDITED]:
            handed_in.remove(note)
            self._edited.update((branch, position) for branch, position in note.value["places"])
        self._entries = sorted(handed_in, key=lambda effect: effect.completed)
        self._places = {(effect.key.branch, effect.key.position): effect for effect in self._entries}
        self.sequence = max(max(effect.issued, effect.completed) for effect in effects) + 1
        self.lasted = max(effect.at for effect in effects)
        ended = {(effect.key.branch, effect.key.position) for effect in effects if effect.status != "intent"}
        self.intents = {(effect.key.branch, effect.key.position) for effect in effects if effect.status == "intent"} - ended
        for effect in effects:
            if effect.status == "lost":
                place = (effect.key.branch, effect.key.position)
                self.attempts[place] = max(self.attempts.get(place, 0), effect.key.attempt + 1)

    def at(self, place: Place) -> Effect | None:
        """What the record holds of an effect."""
        return self._places.get(place)

    def next(self) -> Effect | None:
        """What is handed in next; None when the record is used up."""
        entries = self._entries
        while self._next < len(entries):
            entry = entries[self._next]
            if (entry.key.branch, entry.key.position) not in self._made:
                return entry
            self._next += 1
        return None

    def edits_last(self) -> bool:
        """Whether what is handed in next was put there by an edit: what the code records before it is new."""
        entry = self.next()
        return entry is not None and (entry.key.branch, entry.key.position) in self._edited

    def advance(self) -> None:
        """The next one was handed in."""
        self._next += 1

    def made(self, place: Place) -> None:
        """The code has written a synchronous effect again."""
        self._made.add(place)

    def differs(self, pending: Pending) -> str:
        """How what the code asks for differs from what the record holds at its place; empty = it does not, or nothing does."""
        entry = self._places.get(pending.place)
        if entry is None or (entry.kind == pending.kind and entry.request == pending.request):
            return ""
        return f"the record holds {said(entry)}, the code asks for {pending}"


def said(entry: Effect) -> str:
    """An entry in a message."""
    return told(entry.kind, entry.name, entry.key, entry.note, entry.request)
