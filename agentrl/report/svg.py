"""Pictures as inline SVG: lines over steps, stacked bars, shares. No script; a point's value is its tooltip."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from agentrl.view.html.markup import Markup, join, tag

NARROW, WIDE, HEIGHT = 380, 560, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 10, 26
POINTS = 240
"""So many points of a line are drawn; more are averaged in bins."""
BARS = 96
"""So many bars stand side by side; more steps are added up in bins."""

Point = tuple[float, float]
Say = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a chart. `dots` marks each point, for what is measured now and then; a `broad` line lies below the others,
    which may run along it."""

    name: str
    points: Sequence[Point]
    dots: bool = False
    broad: bool = False


def line_chart(lines: Sequence[Line], say: Say | None = None, *, least: float | None = None, width: int = NARROW) -> Markup:
    """Lines over steps with a legend; `say` writes a value, `least` is a value that the axis shows at least."""
    drawn = [
        (index, line, points)
        for index, line in enumerate(lines)
        if (points := _binned([point for point in line.points if math.isfinite(point[1])]))
    ]
    if not drawn:
        return tag("p", "nothing measured", class_="dim")
    steps = [x for _, _, points in drawn for x, _ in points]
    values = [y for _, _, points in drawn for _, y in points] + ([] if least is None else [least])
    levels = ticks(min(values), max(values))
    frame = _Frame(min(steps), max(steps), levels, width)
    parts: list[str] = [*frame.axes(say or _level(levels))]
    for index, line, points in sorted(drawn, key=lambda each: not each[1].broad):
        parts += _drawn(line, points, f"c{index % 7}", frame, say or "{:.4g}".format)
    names = [(index, line.name) for index, line, _ in drawn]
    return tag("figure", legend(names), _svg(parts, ", ".join(name for _, name in names), width))


def _drawn(line: Line, points: Sequence[Point], colour: str, frame: _Frame, say: Say) -> Iterable[Markup]:
    """A line, and its points with their values as tooltips."""
    at = [(frame.x(x), frame.y(y)) for x, y in points]
    if len(at) > 1:
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in at)
        yield tag("path", d=path, class_=f"line {colour}{' broad' if line.broad else ''}")
    for (x, y), (step, value) in zip(at, points, strict=True):
        kind, radius = ("dot", 3) if line.dots or len(at) == 1 else ("near", 5)
        title = tag("title", f"step {step:.6g}: {line.name} {say(value)}")
        yield tag("circle", title, cx=f"{x:.1f}", cy=f"{y:.1f}", r=radius, class_=f"{kind} {colour}")


def bar_chart(bars: Mapping[float, Mapping[str, float]], names: Sequence[str], say: Say) -> Markup:
    """Bars over steps, each stacked of named parts."""
    if not bars:
        return tag("p", "nothing measured", class_="dim")
    bins = _summed(bars, names)
    top = max(sum(parts.values()) for _, _, parts in bins)
    frame = _Frame(0, len(bins), ticks(0, top), WIDE)
    parts_: list[str] = [*frame.axes(say, [(at + 0.5, f"{last:.6g}") for at, (_, last, _) in enumerate(bins)])]
    room = (WIDE - _LEFT - _RIGHT) / len(bins)
    gap = min(2.0, room * 0.15)
    for at, (first, last, parts) in enumerate(bins):
        base = 0.0
        for index, name in enumerate(names):
            if not parts[name]:
                continue
            y, below = frame.y(base + parts[name]), frame.y(base)
            base += parts[name]
            steps = f"step {last:.6g}" if first == last else f"steps {first:.6g} to {last:.6g}"
            title = tag("title", f"{steps}: {name} {say(parts[name])}")
            parts_.append(tag("rect", title, x=f"{frame.x(at) + gap / 2:.1f}", y=f"{y:.1f}", width=f"{room - gap:.1f}",
                              height=f"{below - y:.1f}", class_=f"area c{index % 7}"))  # fmt: skip
    return tag("figure", legend(list(enumerate(names))), _svg(parts_, "stacked bars: " + ", ".join(names), WIDE))


def share_bar(parts: Sequence[tuple[str, float]], say: Say) -> Markup:
    """One bar of the whole width, cut by shares."""
    total = sum(value for _, value in parts) or 1.0
    cells = [
        tag("span", f"{name} {value / total:.0%}" if value / total > 0.09 else "", class_=f"c{index % 7}",
            style=f"flex:{value / total:.5f}", title=f"{name}: {say(value)}, {value / total:.1%}")
        for index, (name, value) in enumerate(parts)
    ]  # fmt: skip
    return tag("div", *cells, class_="shares", role="img")


def legend(names: Sequence[tuple[int, str]]) -> Markup:
    """The colours by name, where there are several."""
    if len(names) < 2:
        return Markup("")
    return tag("figcaption", *(tag("span", tag("i", class_=f"c{index % 7}"), name) for index, name in names))


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers evenly apart, from at or below `low` to at or above `high`."""
    if low == high:
        low, high = (low - abs(low) * 0.1, high + abs(high) * 0.1) if low else (0.0, 1.0)
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


class _Frame:
    """Where values stand in the picture."""

    def __init__(self, first: float, last: float, levels: Sequence[float], width: int) -> None:
        self._first, self._last = (first, last) if last > first else (first - 0.5, first + 0.5)
        self._levels = levels
        self._width = width

    def x(self, value: float) -> float:
        return _LEFT + (self._width - _LEFT - _RIGHT) * (value - self._first) / (self._last - self._first)

    def y(self, value: float) -> float:
        low, high = self._levels[0], self._levels[-1]
        return _TOP + (HEIGHT - _TOP - _BOTTOM) * (high - value) / (high - low)

    def axes(self, say: Say, names: Sequence[tuple[float, str]] | None = None) -> Iterable[Markup]:
        """Lines and numbers of both axes; `names` are what may stand below, instead of the steps."""
        for level in self._levels:
            y = f"{self.y(level):.1f}"
            yield tag("line", x1=_LEFT, x2=self._width - _RIGHT, y1=y, y2=y, class_="grid")
            yield tag("text", say(level), x=_LEFT - 6, y=y, dy=".32em", text_anchor="end")
        if names is None:
            whole = [tick for tick in ticks(self._first, self._last, 6) if self._first <= tick <= self._last]
            names = [(tick, f"{tick:.6g}") for tick in whole if float(tick).is_integer()]
        every = math.ceil(len(names) / 9)
        for at, name in names[:: max(1, every)]:
            yield tag("text", name, x=f"{self.x(at):.1f}", y=HEIGHT - 8, text_anchor="middle")


def _svg(parts: Iterable[str], what: str, width: int) -> Markup:
    return tag("svg", join(parts), viewBox=f"0 0 {width} {HEIGHT}", role="img", aria_label=what)


def _level(levels: Sequence[float]) -> Say:
    """Writes the numbers of an axis with the digits that tell them apart."""
    if max(map(abs, levels)) < 1e-3:
        return "{:.2g}".format
    first, step = levels[0], levels[1] - levels[0]
    digits = next((digits for digits in range(5) if abs(round(step, digits) - step) < 1e-6 * step), None)
    if digits is None:  # all but the same: what they are more than the lowest
        return lambda value: f"{value:.4g}" if value == first else f"+{value - first:.2g}"
    return lambda value: f"{value:,.{digits}f}"


def _binned(points: Sequence[Point]) -> list[Point]:
    """At most `POINTS` points: the mean of each bin at its last step."""
    width = math.ceil(len(points) / POINTS)
    if width <= 1:
        return list(points)
    bins = [points[at : at + width] for at in range(0, len(points), width)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in bins]


def _summed(bars: Mapping[float, Mapping[str, float]], names: Sequence[str]) -> list[tuple[float, float, dict[str, float]]]:
    """(first step, last step, sums) of at most `BARS` bins."""
    steps = sorted(bars)
    width = max(1, math.ceil(len(steps) / BARS))
    found: list[tuple[float, float, dict[str, float]]] = []
    for at in range(0, len(steps), width):
        part = steps[at : at + width]
        found.append((part[0], part[-1], {name: sum(bars[step][name] for step in part) for name in names}))
    return found
