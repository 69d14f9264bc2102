"""Colour in a terminal: where it is wanted, and what is good or bad."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from agentrl.episode import Status

_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34", "magenta": "35", "cyan": "36"}


@dataclass(frozen=True, slots=True)
class Paint:
    """Puts styles around a text, or leaves it as it is where colour is off."""

    on: bool

    @classmethod
    def wanted(cls, color: bool | None) -> Paint:
        """`None` asks standard output, NO_COLOR and TERM."""
        asked = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        return cls(asked if color is None else color)

    def __call__(self, text: str, *styles: str) -> str:
        if not self.on or not styles or not text:
            return text
        return f"\x1b[{';'.join(_CODES[style] for style in styles)}m{text}\x1b[0m"


def status_color(status: Status) -> str:
    """Green where all went well, red where it failed, yellow between."""
    return "green" if status == "done" else "red" if status == "failed" else "yellow"


def credit_styles(value: float, largest: float) -> tuple[str, ...]:
    """Green above zero, red below; dim, plain or bold by size beside the episode's largest."""
    if not value or not largest:
        return ()
    size = abs(value) / largest
    strength = ("bold",) if size > 2 / 3 else ("dim",) if size <= 1 / 3 else ()
    return ("green" if value > 0 else "red", *strength)
