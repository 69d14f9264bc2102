"""What an objective is: log-probs and credit to a scalar (to be minimised).

Legend: N entries, one per (row, trained token); a token that several rows share occurs once for each. R rows.
Torch is imported only for types here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Entries:
    """One entry per (row, trained token), as tensors of shape (N,); those of a row in the order in which they were drawn."""

    logprobs: Tensor
    """Under the weights being trained, with gradient, at the temperature at which the token was drawn."""
    behaviour: Tensor
    """As recorded when it was drawn."""
    advantage: Tensor
    weight: Tensor
    row: Tensor
    """Index of the row, int64."""
    turn: Tensor
    """Index of the (row, turn) pair, int64: for ratios by turn."""
    episode: Tensor
    num_rows: int
    entropy: Tensor | None = None
    reference: Tensor | None = None
    """Under a frozen reference policy, at the same temperature."""


class Objective(Protocol):
    """A frozen dataclass with its own numbers as fields.

    It may also have `needs_reference` and `needs_entropy` (what must be in the entries) and `idle_at_zero` (tokens of advantage
    0 have no gradient); what it has not counts as false.
    """

    @property
    def needs_behaviour(self) -> bool:
        """Whether the recorded log-probs must be there (not for NLL)."""
        ...

    def __call__(self, entries: Entries) -> tuple[Tensor, Mapping[str, float]]:
        """The scalar to minimise, and metrics."""
        ...
