"""An episode as a tree in the terminal.

What models and tools wrote is shown, never obeyed: control characters are made visible, so that no output can move the
cursor or change the terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from agentrl.episode import EMPTY_MAP, Episode, IntArray, ToolCall, Turn
from agentrl.view import facts
from agentrl.view.credit import TurnCredit, largest
from agentrl.view.paint import Paint, credit_styles, status_color
from agentrl.view.shape import End, Fork, walk
from agentrl.view.text import columns, visible, wrap

_MIN_WIDTH = 40


def render_tree(
    episode: Episode,
    *,
    width: int = 120,
    color: bool | None = None,
    decode: Callable[[Turn, IntArray], str] | None = None,
    full: bool = False,
    credit: Mapping[str, TurnCredit] = EMPTY_MAP,
) -> str:
    """The episode in lines of at most `width` columns (at least 40). Texts are shortened to a few lines unless `full`.

    With `decode` the context that each turn added is shown as well; `credit` by turn id is written beside the turns and
    colours them. `color=None` asks standard output and NO_COLOR.
    """
    page = _Page(max(width, _MIN_WIDTH), Paint.wanted(color), decode, full, credit, largest(credit))
    lines = [*page.head(episode), *page.turns(episode), *page.foot(episode)]
    return "\n".join(line.rstrip() for line in lines)


@dataclass(frozen=True, slots=True)
class _Page:
    """How to write one episode; `width` counts columns of the terminal."""

    width: int
    paint: Paint
    decode: Callable[[Turn, IntArray], str] | None
    full: bool
    credit: Mapping[str, TurnCredit]
    largest: float

    # --- around the tree -------------------------------------------------------------------------------------------------
    def head(self, episode: Episode) -> Iterator[str]:
        told = [f"group {episode.group}", episode.source, f"seed {episode.seed}", f"{episode.seconds:.2f} s"]
        if episode.fork_of is not None:
            told.append(f"fork of {episode.fork_of} at {episode.fork_cut}")
        status = (episode.status, status_color(episode.status), "bold")
        yield from self.line(f"episode {episode.id} ", "", "bold", then=status)
        yield from self.line("  ".join(told), "  ", "dim")
        yield from self.block("task ", facts.as_text(episode.task), "  ", most=6)

    def foot(self, episode: Episode) -> Iterator[str]:
        if episode.failure is not None:
            yield from self.block(f"failure ({episode.failure.fault}) ", episode.failure.message, "  ", "red")
        if episode.output is not None:
            yield from self.block("output ", facts.as_text(episode.output), "  ", "bold")
        for reward in episode.rewards:
            yield from self.line(facts.reward(reward), "  ", "magenta")
        if episode.metrics:
            yield from self.line("metrics " + facts.numbers(episode.metrics), "  ", "dim")
        if episode.stops:
            yield from self.line("stops " + facts.stops(episode), "  ", "dim")
        if self.credit:
            steps = sorted({row.step for entry in self.credit.values() for row in entry.rows})
            yield from self.line(f"learned in step {', '.join(map(str, steps))}", "  ", "dim")
        yield from self.line("paid " + facts.ledger(episode), "  ", "dim")

    # --- the tree --------------------------------------------------------------------------------------------------------
    def turns(self, episode: Episode) -> Iterator[str]:
        """Turns that simply go on stand below each other; each of several that go on from one turn is a branch."""
        prefixes = [""]
        first: str | None = None  # the prefix of a branch's first line
        for event in walk(episode):
            if isinstance(event, Fork):
                first, rest = _forked(event, prefixes[-1])
                prefixes.append(rest)
            elif isinstance(event, End):
                prefixes.pop()
            else:
                rest = prefixes[-1]
                yield from self.turn(event.turn, rest if first is None else first, rest + ("│ " if event.goes_on else "  "))
                first = None

    def turn(self, turn: Turn, first: str, inner: str) -> Iterator[str]:
        lead, inner = _short_of(first, self.width), _short_of(inner, self.width)
        told = [facts.size(turn), turn.finish, facts.version(turn), f"{turn.ended - turn.started:.2f} s", turn.id]
        entry = self.credit.get(turn.id)
        styles = credit_styles(entry.mean, self.largest) if entry is not None else ()
        name = f"● {turn.agent} {turn.index} " + (f"credit {entry} " if entry is not None else "")
        yield from self.line(name, lead, *(styles or ("bold", "cyan")), then=("  ".join(told), "dim"), rest=inner)
        marks = [*facts.marks(turn), *(["in no trained row"] if self.credit and entry is None and turn.trainable else [])]
        if marks:
            yield from self.line("  ".join(marks), inner, "yellow")
        if self.decode is not None and len(turn.context_ids):
            yield from self.block("┆ ", self.decode(turn, turn.context_ids), inner, "dim")
        text = turn.text or (self.decode(turn, turn.sampled_ids) if self.decode is not None else "")
        yield from self.block("", text or "(no text)", inner, *styles, most=8)
        for call in turn.tool_calls:
            yield from self.call(call, inner)
        if turn.observation:
            yield from self.block("sees ", turn.observation, inner, "dim")
        for reward in turn.rewards:
            yield from self.line(facts.reward(reward), inner, "magenta")
        for probe in turn.probes:
            yield from self.line(facts.probe(probe), inner, "blue")

    def call(self, call: ToolCall, inner: str) -> Iterator[str]:
        yield from self.block("→ ", facts.asked(call), inner, "blue", most=3)
        yield from self.line(facts.took(call), inner + "  ", "green" if call.status == "ok" else "red")
        yield from self.block("", facts.got(call), inner + "  ", "dim")

    # --- lines -----------------------------------------------------------------------------------------------------------
    def line(self, text: str, lead: str, *styles: str, then: tuple[str, ...] = ("",), rest: str | None = None) -> Iterator[str]:
        """`text`, and behind it `then` in a style of its own where there is room, else below."""
        behind, *behind_styles = then
        lead = _short_of(lead, self.width)
        text, behind = visible(text), visible(behind)
        if columns(lead + text + behind) <= self.width:
            yield self.paint(lead, "dim") + self.paint(text, *styles) + self.paint(behind, *behind_styles)
            return
        rest = _short_of(lead if rest is None else rest, self.width)
        room = self.width - max(columns(lead), columns(rest))
        pieces = [(piece, styles) for piece in wrap(text, room)]
        pieces += [(piece, tuple(behind_styles)) for piece in wrap(behind, room) if behind]
        for index, (piece, style) in enumerate(pieces):
            yield self.paint(rest if index else lead, "dim") + self.paint(piece, *style)

    def block(self, label: str, text: str, lead: str, *styles: str, most: int = 4) -> Iterator[str]:
        """A text of several lines behind a label, shortened in the middle to `most` lines."""
        lead = _short_of(lead, self.width)
        space = " " * columns(label)
        room = max(8, self.width - columns(lead) - columns(label))
        lines = [piece for line in visible(text).split("\n") for piece in wrap(line, room)]
        if not self.full and len(lines) > most:
            last = (most - 1) // 3
            left_out = len(lines) - most + 1
            lines = [*lines[: most - 1 - last], f"[{left_out} more lines]"[:room], *lines[len(lines) - last :]]
        for index, line in enumerate(lines):
            yield self.paint(lead + (space if index else label), "dim") + self.paint(line, *styles)


def _forked(fork: Fork, prefix: str) -> tuple[str, str]:
    """The prefixes of a branch: of its first line, and of those below."""
    if fork.index == fork.count - 1:
        return prefix + "└─", prefix + "  "
    return prefix + "├─", prefix + "│ "


def _short_of(prefix: str, width: int) -> str:
    """A prefix that leaves half the line for text, however deep the tree is."""
    most = width // 2
    return prefix if len(prefix) <= most else "…" + prefix[len(prefix) - most + 1 :]
