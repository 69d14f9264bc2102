"""A run's episodes as a table."""

from __future__ import annotations

from collections.abc import Iterable

from agentrl.episode import Episode
from agentrl.view.paint import Paint, status_color
from agentrl.view.text import columns, visible

COLUMNS = ("episode", "split", "step", "status", "reward", "turns", "tools", "tokens", "seconds")
WORDS = (0, 1, 3)
"""The columns that hold no numbers."""


def cells(split: str, step: int, episode: Episode) -> tuple[str, ...]:
    """An episode's line, by `COLUMNS`."""
    ledger = episode.ledger
    counts = (len(episode.turns), ledger.tool_calls, ledger.sampled_tokens)
    told = (episode.id, split, str(step), episode.status, f"{episode.reward:.3g}")
    return (*told, *map(str, counts), f"{episode.seconds:.2f}")


def render_list(episodes: Iterable[tuple[str, int, Episode]], *, color: bool | None = None) -> str:
    """A line for each (split, step, episode)."""
    paint = Paint.wanted(color)
    kept = list(episodes)
    rows = [COLUMNS, *(tuple(map(visible, cells(*each))) for each in kept)]
    widths = [max(columns(row[at]) for row in rows) for at in range(len(COLUMNS))]
    lines: list[str] = []
    for row, shown in zip(rows, (None, *kept), strict=True):
        padded = [_pad(cell, widths[at], left=at in WORDS) for at, cell in enumerate(row)]
        if shown is not None:
            padded[3] = paint(padded[3], status_color(shown[2].status))
        line = "  ".join(padded)
        lines.append((line if shown is not None else paint(line, "bold")).rstrip())
    return "\n".join(lines)


def _pad(text: str, width: int, *, left: bool) -> str:
    space = " " * (width - columns(text))
    return text + space if left else space + text
