"""How the learning rate moves: a value that gives, for the number of updates made so far, a factor of the full rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from agentrl.errors import UserError


class Schedule(Protocol):
    """Factor of the learning rate for the update after `updates` others."""

    def __call__(self, updates: int) -> float: ...


@dataclass(frozen=True, slots=True)
class Constant:
    """The full rate, after a linear rise over the first `warmup` updates."""

    warmup: int = 0

    def __call__(self, updates: int) -> float:
        """The factor."""
        return _rise(updates, self.warmup)


@dataclass(frozen=True, slots=True)
class Linear:
    """From the full rate down to `floor` of it in a line that ends after `steps` updates, warm-up included."""

    steps: int
    warmup: int = 0
    floor: float = 0.0

    def __post_init__(self) -> None:
        _check(self.steps, self.warmup, self.floor)

    def __call__(self, updates: int) -> float:
        """The factor."""
        return _rise(updates, self.warmup) * (1 - (1 - self.floor) * _progress(updates, self.warmup, self.steps))


@dataclass(frozen=True, slots=True)
class Cosine:
    """As `Linear`, along half a cosine."""

    steps: int
    warmup: int = 0
    floor: float = 0.0

    def __post_init__(self) -> None:
        _check(self.steps, self.warmup, self.floor)

    def __call__(self, updates: int) -> float:
        """The factor."""
        fall = 0.5 * (1 - math.cos(math.pi * _progress(updates, self.warmup, self.steps)))
        return _rise(updates, self.warmup) * (1 - (1 - self.floor) * fall)


def _rise(updates: int, warmup: int) -> float:
    return min((updates + 1) / (warmup + 1), 1.0)


def _progress(updates: int, warmup: int, steps: int) -> float:
    return min(max(updates - warmup, 0) / (steps - warmup), 1.0)


def _check(steps: int, warmup: int, floor: float) -> None:
    if not 0 <= warmup < steps or not 0 <= floor <= 1:
        raise UserError(f"a schedule needs 0 <= warmup < steps and 0 <= floor <= 1, got {warmup=}, {steps=}, {floor=}")
