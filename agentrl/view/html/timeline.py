"""When an episode's turns and tool calls ran, as one drawing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agentrl.view import facts
from agentrl.view.html.markup import Markup, join, tag
from agentrl.view.html.shown import Scale, Shown, credit_class

_ROW, _HEAD = 18, 20
"""Pixels of a bar's row, and of an agent's name above its rows."""


@dataclass(frozen=True, slots=True)
class _Bar:
    started: float
    ended: float
    style: str
    told: str
    turn: str


def render_timeline(shown: Shown, scale: Scale, anchors: Mapping[str, str]) -> Markup:
    """A lane for each agent, where bars that overlap stand below each other; a turn's bar leads to the turn."""
    lanes: dict[str, list[_Bar]] = {}
    for turn in shown.episode.turns:
        entry = shown.credit.get(turn.id)
        style = f"turn t {credit_class(entry.mean, scale.credit)}" if entry is not None else "turn"
        credit = f", credit {entry}" if entry is not None else ""
        told = f"{turn.agent} {turn.index}: {turn.ended - turn.started:.2f} s, {facts.size(turn)}{credit}"
        lane = lanes.setdefault(turn.agent, [])
        lane.append(_Bar(turn.started, turn.ended, style, told, turn.id))
        for call in turn.tool_calls:
            style = "tool" if call.status == "ok" else "tool bad"
            lane.append(_Bar(call.started, call.ended, style, f"{facts.asked(call)[:200]}: {facts.took(call)}", turn.id))
    begin = min((bar.started for lane in lanes.values() for bar in lane), default=0.0)
    end = max((bar.ended for lane in lanes.values() for bar in lane), default=0.0)
    if end <= begin:
        return Markup()
    parts: list[Markup] = []
    y = 0
    for agent, lane in lanes.items():
        parts.append(tag("text", agent, x=0, y=y + 14, class_="lane"))
        rows, y = _rows(lane), y + _HEAD
        for row in rows:
            parts += [_drawn(bar, begin, end, y, anchors) for bar in row]
            y += _ROW
    ticks = [
        join((
            tag("line", x1=f"{share}%", x2=f"{share}%", y1=0, y2=y, class_="tick"),
            tag("text", f"{begin + (end - begin) * share / 100:.2f} s", x=f"{share}%", y=y + 14, class_=f"time at{share}"),
        ))
        for share in (0, 25, 50, 75, 100)
    ]  # fmt: skip
    drawing = tag("svg", *ticks, *parts, height=y + _HEAD, width="100%", role="img", aria_label="timeline")
    return tag("details", tag("summary", "timeline of turns and tool calls"), drawing, class_="timeline", open=True)


def _drawn(bar: _Bar, begin: float, end: float, y: int, anchors: Mapping[str, str]) -> Markup:
    share = 100 / (end - begin)
    x = min((bar.started - begin) * share, 99.7)
    width = max((bar.ended - bar.started) * share, 0.3)
    drawn = tag(
        "rect", tag("title", bar.told), x=f"{x:.3f}%", width=f"{width:.3f}%", y=y + 2, height=_ROW - 4, rx=3, class_=bar.style
    )
    return tag("a", drawn, href=f"#{anchors[bar.turn]}")


def _rows(bars: list[_Bar]) -> list[list[_Bar]]:
    """Each bar in the first row that is free when it begins."""
    rows: list[list[_Bar]] = []
    for bar in sorted(bars, key=lambda bar: (bar.started, bar.ended)):
        row = next((row for row in rows if row[-1].ended <= bar.started + 1e-9), None)
        if row is None:
            rows.append([bar])
        else:
            row.append(bar)
    return rows
