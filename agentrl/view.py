"""An episode as a tree in the terminal, and a run's episodes as a list.

What models and tools wrote is shown, never obeyed: control characters are made visible, so that no output can move the
cursor or change the terminal.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentrl.episode import Episode, IntArray, Reward, ToolCall, Turn

_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34", "magenta": "35", "cyan": "36"}
_GOOD = ("done", "ok", "stop", "answered")
_MIN_WIDTH = 40


def render_tree(
    episode: Episode,
    *,
    width: int = 120,
    color: bool | None = None,
    decode: Callable[[IntArray], str] | None = None,
    full: bool = False,
) -> str:
    """The episode in lines of at most `width` columns (at least 40). Texts are shortened to a few lines unless `full`.

    With `decode` the context that each turn added is shown as well. `color=None` asks standard output and NO_COLOR.
    """
    paint = _Paint(_wants_color() if color is None else color)
    page = _Page(max(width, _MIN_WIDTH), paint, decode, full)
    lines = [*page.head(episode), *page.turns(episode), *page.foot(episode)]
    return "\n".join(line.rstrip() for line in lines)


def render_list(episodes: Iterable[tuple[str, int, Episode]], *, color: bool | None = None) -> str:
    """A line for each (split, step, episode)."""
    paint = _Paint(_wants_color() if color is None else color)
    rows: list[tuple[str, ...]] = [("episode", "split", "step", "status", "reward", "turns", "tools", "tokens", "seconds")]
    for split, step, episode in episodes:
        ledger = episode.ledger
        numbers = (len(episode.turns), ledger.tool_calls, ledger.sampled_tokens)
        told = (visible(episode.id), visible(split), str(step), episode.status, f"{episode.reward:.3g}")
        rows.append((*told, *map(str, numbers), f"{episode.seconds:.2f}"))
    widths = [max(columns(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines: list[str] = []
    for index, row in enumerate(rows):
        left = {0, 1, 3}
        cells = [_pad(cell, widths[at], left=at in left) for at, cell in enumerate(row)]
        if index:
            cells[3] = paint(cells[3], "green" if row[3] in _GOOD else "red" if row[3] == "failed" else "yellow")
        lines.append((paint("  ".join(cells), "bold") if not index else "  ".join(cells)).rstrip())
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class _Paint:
    on: bool

    def __call__(self, text: str, *styles: str) -> str:
        if not self.on or not styles or not text:
            return text
        return f"\x1b[{';'.join(_CODES[style] for style in styles)}m{text}\x1b[0m"


@dataclass(frozen=True, slots=True)
class _Page:
    """How to write one episode; `width` counts columns of the terminal."""

    width: int
    paint: _Paint
    decode: Callable[[IntArray], str] | None
    full: bool

    # --- around the tree -------------------------------------------------------------------------------------------------
    def head(self, episode: Episode) -> Iterator[str]:
        status = [("green" if episode.status in _GOOD else "red" if episode.status == "failed" else "yellow"), "bold"]
        facts = [f"group {episode.group}", episode.source, f"seed {episode.seed}", f"{episode.seconds:.2f} s"]
        if episode.fork_of is not None:
            facts.append(f"fork of {episode.fork_of} at {episode.fork_cut}")
        yield from self.line(f"episode {episode.id} ", "", "bold", then=(episode.status, *status))
        yield from self.line("  ".join(facts), "  ", "dim")
        yield from self.block("task ", _as_text(episode.task), "  ", most=6)

    def foot(self, episode: Episode) -> Iterator[str]:
        if episode.failure is not None:
            yield from self.block(f"failure ({episode.failure.fault}) ", episode.failure.message, "  ", "red")
        if episode.output is not None:
            yield from self.block("output ", _as_text(episode.output), "  ", "bold")
        for reward in episode.rewards:
            yield from self.line(_reward(reward), "  ", "magenta")
        if episode.metrics:
            yield from self.line("metrics " + _numbers(episode.metrics), "  ", "dim")
        if episode.stops:
            yield from self.line("stops " + ", ".join(f"{agent}: {reason}" for agent, reason in episode.stops), "  ", "dim")
        yield from self.line("paid " + _ledger(episode), "  ", "dim")

    # --- the tree --------------------------------------------------------------------------------------------------------
    def turns(self, episode: Episode) -> Iterator[str]:
        """Turns that simply go on stand below each other; each of several that go on from one turn is a branch."""
        known = {turn.id for turn in episode.turns}
        children: dict[str | None, list[Turn]] = {}
        for turn in episode.turns:
            parent = turn.parent.turn if turn.parent is not None and turn.parent.turn in known else None
            children.setdefault(parent, []).append(turn)
        roots = children.pop(None, [])
        # the pending branches, last first: (turn, prefix of its first line, prefix of the others)
        stack = [(turn, *_forked(index, len(roots), "")) for index, turn in reversed(list(enumerate(roots)))]
        while stack:
            turn, first, rest = stack.pop()
            following = children.pop(turn.id, [])
            inner = rest + ("│ " if following else "  ")
            yield from self.turn(turn, first, inner)
            if len(following) == 1:
                stack.append((following[0], rest, rest))
            else:
                forks = list(enumerate(following))
                stack.extend((child, *_forked(index, len(forks), rest)) for index, child in reversed(forks))

    def turn(self, turn: Turn, first: str, inner: str) -> Iterator[str]:
        lead, inner = _short_of(first, self.width), _short_of(inner, self.width)
        facts = [f"{len(turn.context_ids)}+{len(turn.sampled_ids)} tokens", turn.finish, _version(turn)]
        facts += [f"{turn.ended - turn.started:.2f} s", turn.id]
        yield from self.line(f"● {turn.agent} {turn.index} ", lead, "bold", "cyan", then=("  ".join(facts), "dim"), rest=inner)
        marks = list(_marks(turn))
        if marks:
            yield from self.line("  ".join(marks), inner, "yellow")
        if self.decode is not None and len(turn.context_ids):
            yield from self.block("┆ ", self.decode(turn.context_ids), inner, "dim")
        text = turn.text or (self.decode(turn.sampled_ids) if self.decode is not None else "")
        yield from self.block("", text or "(no text)", inner, most=8)
        for call in turn.tool_calls:
            yield from self.call(call, inner)
        if turn.observation:
            yield from self.block("sees ", turn.observation, inner, "dim")
        for reward in turn.rewards:
            yield from self.line(_reward(reward), inner, "magenta")
        for probe in turn.probes:
            value = f" = {probe.value:.4g}" if probe.value is not None else ""
            yield from self.line(f"probe {probe.name} at {probe.position}, {len(probe.ids)} tokens{value}", inner, "blue")

    def call(self, call: ToolCall, inner: str) -> Iterator[str]:
        arguments = ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in call.arguments.items())
        took = f"{call.status}  {call.ended - call.started:.2f} s"
        took += f"  {call.attempts} attempts" if call.attempts > 1 else ""
        yield from self.block("→ ", f"{call.name}({arguments})", inner, "blue", most=3)
        yield from self.line(took, inner + "  ", "green" if call.status == "ok" else "red")
        yield from self.block("", call.output + (" (cut)" if call.truncated else ""), inner + "  ", "dim")

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


def visible(text: str) -> str:
    """`text` with control and direction-changing characters written out (`\\x1b`); line ends stay, tabs become spaces."""
    text = text.replace("\r\n", "\n").replace("\t", "    ")
    if text.isprintable():
        return text
    return "".join(sign if sign == "\n" or sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def columns(text: str) -> int:
    """Columns of a terminal that `text` takes."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(sign) else 2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text)


def wrap(line: str, width: int) -> list[str]:
    """`line` in pieces of at most `width` columns, cut at blanks where that leaves no piece half empty."""
    pieces: list[str] = []
    while columns(line) > width:
        end = _fitting(line, width)
        blank = line.rfind(" ", 0, end + 1)
        at = blank if blank > end // 2 else end
        pieces.append(line[:at].rstrip(" "))
        line = line[at:].lstrip(" ") if at == blank else line[at:]
    return [*pieces, line]


def _fitting(line: str, width: int) -> int:
    """How many characters fit into `width` columns; at least one."""
    taken = 0
    for index, sign in enumerate(line):
        taken += columns(sign)
        if taken > width:
            return max(1, index)
    return len(line)


def _pad(text: str, width: int, *, left: bool) -> str:
    space = " " * (width - columns(text))
    return text + space if left else space + text


def _forked(index: int, count: int, prefix: str) -> tuple[str, str]:
    """The prefixes of a branch: of its first line, and of those below."""
    if count == 1:
        return prefix, prefix
    return (prefix + "└─", prefix + "  ") if index == count - 1 else (prefix + "├─", prefix + "│ ")


def _short_of(prefix: str, width: int) -> str:
    """A prefix that leaves half the line for text, however deep the tree is."""
    most = width // 2
    return prefix if len(prefix) <= most else "…" + prefix[len(prefix) - most + 1 :]


def _version(turn: Turn) -> str:
    steps = list(dict.fromkeys(span.version.step for span in turn.versions))
    if not steps:
        return turn.policy
    return f"{turn.policy}@{'→'.join(map(str, steps))}"


def _marks(turn: Turn) -> Iterator[str]:
    if turn.kind != "act":
        yield turn.kind
    if turn.candidate is not None:
        chosen = "chosen" if turn.candidate.chosen else "not chosen"
        yield f"candidate {turn.candidate.index} of {turn.candidate.set}, {chosen}"
    if turn.forced:
        yield f"first {turn.forced} tokens forced"
    if not turn.valid:
        yield "invalid format"
    if turn.untrained:
        yield f"not trained: {turn.untrained}"


def _reward(reward: Reward) -> str:
    return f"reward {reward.name} = {reward.value:.4g}" + (f" for {reward.agent}" if reward.agent is not None else "")


def _ledger(episode: Episode) -> str:
    ledger = episode.ledger
    parts = [f"{ledger.sampled_tokens} tokens sampled", f"{ledger.prompt_tokens} of prompts ({ledger.cached_tokens} cached)"]
    parts += [f"{ledger.lost_tokens} lost"] if ledger.lost_tokens else []
    parts += [f"{ledger.probe_tokens} probed"] if ledger.probe_tokens else []
    parts += [f"{ledger.model_calls} model calls", f"{ledger.tool_calls} tool calls"]
    return ", ".join(parts) + (f", {_numbers(ledger.costs)}" if ledger.costs else "")


def _numbers(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} = {value:.4g}" for name, value in values.items())


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping | Sequence) or value is None or isinstance(value, bool | int | float):
        return json.dumps(value, ensure_ascii=False, default=repr)
    return repr(value)


def _wants_color() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
