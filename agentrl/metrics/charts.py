"""A picture of how a run went, and a table of before and after."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from agentrl.errors import UserError

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's, which colour-blind readers tell apart."""
_MARKED_UP_TO = 40
"""So many points of a series are marked one by one."""


def draw_curve(
    series: Mapping[str, Sequence[tuple[float, float]]], path: str | Path, *, x: str, y: str, title: str = ""
) -> None:
    """Draws lines of (x, y) points by name into a PNG. Needs the extra `charts`. Points that are not finite are left out."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise UserError(f'drawing needs {error.name}; pip install "agentrl-runtime[charts]"') from error
    lines = {name: [point for point in points if all(map(math.isfinite, point))] for name, points in series.items()}
    if not any(lines.values()):
        raise UserError(f"there is nothing to draw into {path}: no finite point in {', '.join(series) or 'no series'}")
    # a figure of its own, not pyplot's: no global state, no window, any thread
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index, (name, points) in enumerate(lines.items()):
        marker = "o" if len(points) <= _MARKED_UP_TO else None
        colour = _COLOURS[index % len(_COLOURS)]
        style = "-" if index < len(_COLOURS) else "--"
        xs, ys = [point[0] for point in points], [point[1] for point in points]
        axes.plot(xs, ys, style, marker=marker, markersize=3.5, linewidth=1.8, color=colour, label=name)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, loc="left", fontweight="bold")
    axes.grid(True, color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.02)
    if len(lines) > 1:
        axes.legend(frameon=False)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    canvas.print_png(str(path), metadata={"Software": None})  # equal data give equal bytes


def before_after_table(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """A row for each number of either: its name, before, after, the change. Markdown, and aligned as it stands."""
    rows = [("", "before", "after", "change")]
    for name in dict.fromkeys((*before, *after)):
        first, last = before.get(name, math.nan), after.get(name, math.nan)
        change = f"{last - first:+.4g}" if math.isfinite(first) and math.isfinite(last) else ""
        rows.append((name, _cell(first), _cell(last), change))
    widths = [max(3, *(len(row[column]) for row in rows)) for column in range(4)]
    lines = ["| " + " | ".join(_pad(row, widths)) + " |" for row in rows]
    rule = "|" + "|".join("-" * (width + 1) + (":" if column else "-") for column, width in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _pad(row: tuple[str, ...], widths: Sequence[int]) -> list[str]:
    return [f"{row[0]:<{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))]


def _cell(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "-"
