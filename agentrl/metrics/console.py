"""The run as a person watches it: a live table in a terminal, aligned lines now and then anywhere else."""

from __future__ import annotations

import importlib.util
import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TextIO

from agentrl.metrics.record import StepMetrics

if TYPE_CHECKING:
    from rich.live import Live

COLUMNS = ("step", "held-out", "reward", "turns", "tools", "tok/s", "rollout", "learn", "eval", "other", "left")
_WIDTHS = (9, 8, 7, 6, 6, 7, 7, 6, 6, 6, 8)
_ROWS = 15
"""Steps that the live table shows."""
_HEADER_EVERY = 25


class Console:
    """A sink for people. Live where `stream` is a terminal and `rich` is installed; else lines at least `every` seconds apart.

    A line is always written for the first step, for a new held-out value and for the last step. `steps` is how many there
    will be, if that is known.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        steps: int | None = None,
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream or sys.stderr
        self._steps = steps
        self._every = every
        self._clock = clock
        self._values: dict[str, float] = {}
        self._step = -1
        self._shown_at = -math.inf
        self._pending = False
        self._lines = 0
        self._rows: list[tuple[int, tuple[str, ...]]] = []
        self._live: Live | None = None
        if self._stream.isatty() and importlib.util.find_spec("rich") is not None:
            self._live = self._open_live()

    @property
    def live(self) -> bool:
        """Whether the table is live."""
        return self._live is not None

    def write(self, metrics: StepMetrics) -> None:
        """See `Sink`. The held-out value is kept until the next; all else is of this step alone."""
        kept = {name: value for name, value in self._values.items() if name == "held_out/success" or metrics.step == self._step}
        self._values = kept | dict(metrics.values)
        self._step = metrics.step
        row = cells(metrics.step, self._values, self._steps)
        if self._live is not None:
            rows = [shown for shown in self._rows if shown[0] < metrics.step]
            self._rows = [*rows, (metrics.step, row)][-_ROWS:]
            self._live.update(self._table(), refresh=True)
            return
        self._pending = True
        if "held_out/success" in metrics.values or self._clock() - self._shown_at >= self._every:
            self._show(row)

    def note(self, text: str) -> None:
        """See `Sink`; above the table."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            self._put(text)

    def close(self) -> None:
        """See `Sink`. The table stays as it was last."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        elif self._pending:
            self._show(cells(self._step, self._values, self._steps))

    def _show(self, row: tuple[str, ...]) -> None:
        if self._lines % _HEADER_EVERY == 0:
            self._put(_aligned(COLUMNS))
        self._put(_aligned(row))
        self._lines += 1
        self._shown_at = self._clock()
        self._pending = False

    def _put(self, line: str) -> None:
        self._stream.write(line.rstrip() + "\n")
        self._stream.flush()

    def _open_live(self) -> Live:
        from rich.console import Console as Terminal
        from rich.live import Live

        # no thread of its own: it redraws when there is something new, and leaves standard output to others
        live = Live(console=Terminal(file=self._stream), auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        live.start()
        return live

    def _table(self) -> Any:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1), header_style="bold")
        styles = {"held-out": "bold green", "reward": "cyan", "left": "dim"}
        for name in COLUMNS:
            table.add_column(name, justify="right", no_wrap=True, style=styles.get(name))
        for _, row in self._rows:
            table.add_row(*row)
        return table


def cells(step: int, values: Mapping[str, float], steps: int | None = None) -> tuple[str, ...]:
    """One row of the table, in the order of `COLUMNS`; "-" where a value is not known."""
    shares = time_shares(values)
    return (
        f"{step}/{steps}" if steps is not None else str(step),
        _number(values.get("held_out/success"), "{:.1%}"),
        _number(values.get("reward/mean"), "{:.3f}"),
        _number(values.get("turns_per_episode"), "{:.2f}"),
        _number(values.get("tool_calls_per_episode"), "{:.2f}"),
        _number(values.get("tokens_per_second"), "{:.0f}"),
        *(_number(shares.get(name), "{:.0%}") for name in ("rollout", "learn", "eval", "other")),
        duration(values.get("left_seconds")),
    )


def time_shares(values: Mapping[str, float]) -> dict[str, float]:
    """Where the time of a step went, as parts of 1: rollout, learn, eval and all other `time/...` as "other"."""
    spent = {"rollout": 0.0, "learn": 0.0, "eval": 0.0, "other": 0.0}
    for name, seconds in values.items():
        kind, _, part = name.partition("/")
        if kind == "time" and math.isfinite(seconds):
            part = {"evaluate": "eval"}.get(part, part)
            spent[part if part in spent else "other"] += seconds
    total = sum(spent.values())
    return {name: seconds / total for name, seconds in spent.items()} if total > 0 else {}


def duration(seconds: float | None) -> str:
    """Seconds as `45s`, `12m30s`, `3h05m` or `2d04h`; "-" if unknown."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return "-"
    whole = round(seconds)
    for unit, small, size in (("d", "h", 86400), ("h", "m", 3600), ("m", "s", 60)):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // {'h': 3600, 'm': 60, 's': 1}[small]:02}{small}"
    return f"{whole}s"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None or not math.isfinite(value) else form.format(value)


def _aligned(row: tuple[str, ...]) -> str:
    return " ".join(f"{cell:>{width}}" for cell, width in zip(row, _WIDTHS, strict=True))
