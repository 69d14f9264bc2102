"""An episode with all that a page shows of it, and the scales that its colours mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from agentrl.episode import Episode, FloatArray, Turn
from agentrl.view.credit import TurnCredit
from agentrl.view.tokens import Vocabularies

LEVELS = 8
"""Shades of a colour; 0 is none."""
_MOST = 10.0
"""Nats from which on a token is as surprising as can be shown."""


@dataclass(frozen=True, slots=True)
class Shown:
    """`split` and `step` say what it was run for; `credit` is by turn id."""

    episode: Episode
    split: str
    step: int
    credit: Mapping[str, TurnCredit]
    vocabularies: Vocabularies


@dataclass(frozen=True, slots=True)
class Scale:
    """The value that has the strongest colour: of advantages, of -log-prob and of entropy, over all episodes of a page."""

    credit: float
    surprise: float
    entropy: float

    @classmethod
    def over(cls, shown: Sequence[Shown]) -> Scale:
        """0 where nothing is known."""
        turns = [turn for each in shown for turn in each.episode.turns]
        credit = [np.abs(entry.drawn) for each in shown for entry in each.credit.values()]
        entropies = [values for turn in turns if (values := entropy(turn)) is not None]
        surprise = _largest([-turn.logprobs for turn in turns])
        return cls(_largest(credit), min(surprise, _MOST), _largest(entropies))


def entropy(turn: Turn) -> FloatArray | None:
    """Of each sampled token's distribution, where the engine gave it."""
    column = turn.columns.get("entropy")
    return column.values if column is not None and len(column.values) == len(turn.sampled_ids) else None


def level(value: float, largest: float) -> int:
    """The shade of a value, 0 for nothing at all or not a number."""
    if not largest or not math.isfinite(value):
        return 0
    return min(LEVELS, math.ceil(LEVELS * abs(value) / largest - 1e-9))


def credit_class(value: float, largest: float) -> str:
    """`p3` is the third shade of a positive, `n3` of a negative advantage."""
    shade = level(value, largest)
    return f"{'p' if value > 0 else 'n'}{shade}" if shade else ""


def _largest(arrays: Sequence[FloatArray]) -> float:
    values = np.concatenate([np.zeros(1, np.float32), *(np.ravel(array) for array in arrays)])
    return float(values[np.isfinite(values)].max())
