"""The order in which a tree of turns is shown: those that go on stand below each other, forks open branches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from agentrl.episode import Episode, Turn


@dataclass(frozen=True, slots=True)
class Node:
    """A turn, and whether any other goes on from it."""

    turn: Turn
    goes_on: bool


@dataclass(frozen=True, slots=True)
class Fork:
    """Here begins branch `index` of `count`; its `End` comes later."""

    index: int
    count: int


@dataclass(frozen=True, slots=True)
class End:
    """Here ends the branch that began last."""


Event: TypeAlias = Node | Fork | End


def walk(episode: Episode) -> Iterator[Event]:
    """Every turn once, parents first; of a tree however deep. A turn whose parent is unknown is a root."""
    known = {turn.id for turn in episode.turns}
    children: dict[str | None, list[Turn]] = {}
    for turn in episode.turns:
        parent = turn.parent.turn if turn.parent is not None and turn.parent.turn in known else None
        children.setdefault(parent, []).append(turn)
    stack: list[Turn | Fork | End] = _forked(children.pop(None, []))
    while stack:
        at = stack.pop()
        if not isinstance(at, Turn):
            yield at
            continue
        following = children.pop(at.id, [])
        yield Node(at, bool(following))
        stack.extend(_forked(following))


def _forked(turns: list[Turn]) -> list[Turn | Fork | End]:
    """What is to come, last first; one turn alone is no fork."""
    if len(turns) < 2:
        return list(turns)
    found: list[Turn | Fork | End] = []
    for index, turn in reversed(list(enumerate(turns))):
        found += [End(), turn, Fork(index, len(turns))]
    return found
