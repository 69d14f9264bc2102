"""What a learner is: rows in, new weights out.

A row is a path through an episode's tree, the turns of it that are trained, the credit of each, and a weight. Rows share
turns; log-probs are computed once per unique token, the objective per row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from agentrl.engines.contract import Weights
from agentrl.episode import Episode, FloatArray, Turn, Version

if TYPE_CHECKING:
    import numpy.typing as npt


@dataclass(frozen=True, slots=True, eq=False)
class TrainedTurn:
    """A turn of a row with its advantage: shape (S,), one number per sampled token (forced ones are masked later)."""

    turn: Turn
    advantage: FloatArray
    mask: npt.NDArray[np.bool_] | None = None
    """(S,), false for a token that is out of the loss and of all its means; None = all drawn ones are in."""

    @property
    def places(self) -> npt.NDArray[np.int64]:
        """Which of the sampled tokens are trained: drawn, and not masked."""
        drawn = np.arange(self.turn.forced, len(self.turn.sampled_ids))
        return drawn if self.mask is None else drawn[self.mask[self.turn.forced :]]


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """A path as trained: from the root to `leaf`, with the turns of one policy that are trained in it."""

    episode: Episode
    leaf: Turn
    trained: tuple[TrainedTurn, ...]
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class StepStats:
    """What one learner step did. `loss` is the objective's scalar, exact in float64 repr; `metrics` are means over tokens."""

    loss: float
    tokens: int
    trained_tokens: int
    rows: int
    metrics: Mapping[str, float]


class Learner(Protocol):
    """Updates one policy. Entered once; `step` may run outside the event loop's thread, never two at a time."""

    @property
    def version(self) -> Version: ...

    def step(self, rows: Sequence[Row]) -> StepStats:
        """One optimiser step on the rows, in their order. `LearnerError` on a loss or gradient that is not finite."""
        ...

    def weights(self) -> Weights:
        """The current weights by Hugging Face name; not a copy: publish before the next step."""
        ...

    def save(self, folder: Path) -> None:
        """Weights in HF layout plus the optimiser's state; atomic: a folder is whole or absent."""
        ...

    def restore(self, folder: Path) -> None:
        """The inverse of `save`, to the bit."""
        ...
