"""Two episodes side by side: turns aligned, what they do not share marked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from agentrl.episode import Episode, Turn
from agentrl.view import facts
from agentrl.view.html.document import anchors_of
from agentrl.view.html.markup import Markup, tag
from agentrl.view.html.shown import Scale, Shown
from agentrl.view.html.turn import render_turn
from agentrl.view.shape import Node, walk

_LONG = 1500
"""Pieces from which on frequent ones no longer anchor the comparison: it would take quadratic time."""
_TAKEN = ("run for", "turns", "paid", "seconds")


@dataclass(frozen=True, slots=True)
class Pair:
    """A turn of the left and one of the right episode that answer each other, or one that stands alone."""

    left: Turn | None
    right: Turn | None


def align(left: Episode, right: Episode) -> list[Pair]:
    """Equal turns (agent and text) pair; between those, turns of one agent pair in order."""
    lefts, rights = ([event.turn for event in walk(episode) if isinstance(event, Node)] for episode in (left, right))
    pairs: list[Pair] = []
    for kind, a, b, c, d in _opcodes([_key(turn) for turn in lefts], [_key(turn) for turn in rights]):
        if kind == "equal":
            pairs += [Pair(one, other) for one, other in zip(lefts[a:b], rights[c:d], strict=True)]
        else:
            pairs += _by_agent(lefts[a:b], rights[c:d])
    return pairs


def render_diff(left: Shown, right: Shown, scale: Scale) -> Markup:
    """A table of facts, then a row for each pair of turns."""
    anchors = [anchors_of(number, tuple(turn.id for turn in each.episode.turns)) for number, each in enumerate((left, right))]
    rows = [_row(left, right, pair, scale, anchors) for pair in align(left.episode, right.episode)]
    return tag("article", _facts(left, right), *rows)


def _row(left: Shown, right: Shown, pair: Pair, scale: Scale, anchors: Sequence[dict[str, str]]) -> Markup:
    """The two turns, and how much of them is the same."""
    one, other = pair.left, pair.right
    if one is None or other is None:
        shown, turn, at = (left, one, 0) if one is not None else (right, other, 1)
        assert turn is not None
        cell = render_turn(shown, turn, scale, anchors[at][turn.id])
        gap = tag("p", "no such turn", class_="dim gap")
        return tag("div", *((cell, gap) if at == 0 else (gap, cell)), class_="pair")
    texts = [
        [piece.text for piece in each.vocabularies.pieces(turn, turn.sampled_ids)]
        for each, turn in ((left, one), (right, other))
    ]
    only_left, only_right = differing(*texts)
    count = sum(map(len, texts))
    same = 1 - (len(only_left) + len(only_right)) / count if count else float(one.text == other.text)
    return tag(
        "div",
        tag("p", "equal" if same == 1 else f"{same:.0%} in common", class_="same"),
        render_turn(left, one, scale, anchors[0][one.id], changed=only_left, other=other),
        render_turn(right, other, scale, anchors[1][other.id], changed=only_right, other=one),
        class_="pair",
    )


def differing(left: Sequence[str], right: Sequence[str]) -> tuple[set[int], set[int]]:
    """The indexes of what is not common to both, in order."""
    only: tuple[set[int], set[int]] = (set(), set())
    for kind, a, b, c, d in _opcodes(left, right):
        if kind != "equal":
            only[0].update(range(a, b))
            only[1].update(range(c, d))
    return only


def _opcodes(left: Sequence[object], right: Sequence[object]) -> list[tuple[str, int, int, int, int]]:
    matcher = SequenceMatcher(None, left, right, autojunk=max(len(left), len(right)) > _LONG)  # pyright: ignore[reportArgumentType]
    return [(kind, a, b, c, d) for kind, a, b, c, d in matcher.get_opcodes()]


def _key(turn: Turn) -> tuple[str, str, bytes]:
    """Equal turns have equal keys; ids count where there is no text."""
    return turn.agent, turn.text, b"" if turn.text else turn.sampled_ids.tobytes()


def _by_agent(left: Sequence[Turn], right: Sequence[Turn]) -> Iterator[Pair]:
    for kind, a, b, c, d in _opcodes([turn.agent for turn in left], [turn.agent for turn in right]):
        if kind == "equal":
            yield from (Pair(one, other) for one, other in zip(left[a:b], right[c:d], strict=True))
        else:
            yield from (Pair(one, None) for one in left[a:b])
            yield from (Pair(None, other) for other in right[c:d])


def _facts(left: Shown, right: Shown) -> Markup:
    """Facts of both. What it was asked and came to is marked where it differs; what it took nearly always differs."""
    both: dict[str, list[str]] = {}
    for at, shown in enumerate((left, right)):
        for name, value in _told(shown):
            values = both.setdefault(name, ["", ""])
            values[at] += f", {value}" if values[at] else value
    rows: list[Markup] = []
    for name, values in both.items():
        mark = "d" if values[0] != values[1] and name not in _TAKEN else None
        rows.append(tag("tr", tag("th", name, scope="row"), *(tag("td", value, class_=mark, dir="auto") for value in values)))
    head = tag("tr", tag("td"), *(tag("th", shown.episode.id, scope="col") for shown in (left, right)))
    return tag("div", tag("table", tag("thead", head), tag("tbody", *rows), class_="facts"), class_="wide")


def _told(shown: Shown) -> Iterator[tuple[str, str]]:
    episode = shown.episode
    yield "task", facts.as_text(episode.task)
    yield "status", episode.status
    if episode.failure is not None:
        yield "failure", f"{episode.failure.fault}: {episode.failure.message}"
    if episode.output is not None:
        yield "output", facts.as_text(episode.output)
    for reward in episode.rewards:
        name = "reward" if reward.name == "reward" else f"reward {reward.name}"
        yield name + (f" for {reward.agent}" if reward.agent is not None else ""), f"{reward.value:.4g}"
    yield "stops", facts.stops(episode)
    yield "run for", f"{shown.split} {shown.step}, {episode.source}, seed {episode.seed}"
    yield "turns", str(len(episode.turns))
    yield "paid", facts.ledger(episode)
    yield "seconds", f"{episode.seconds:.2f}"
