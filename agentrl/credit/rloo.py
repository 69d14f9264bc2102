"""RLOO: an episode's reward against the mean of the other ones of its group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from agentrl.credit.contract import Batch, Credit, Needs
from agentrl.credit.statistics import normalise, sizes, totals


@dataclass(frozen=True, slots=True)
class RLOO:
    """A_i = R_i - mean_{j != i} R_j = n / (n - 1) (R_i - mean R): REINFORCE with a leave-one-out baseline.

    Ahmadian et al. 2024 (arXiv 2402.14740), after Kool et al. 2019. R is the episode's whole reward, each episode counts
    once, and n is how many of the group ended. An episode alone in its group has no others: it gets `singleton`.
    """

    singleton: float | Literal["raw"] = 0.0
    needs: ClassVar[Needs] = Needs(group=2)

    def __call__(self, batch: Batch) -> Credit:
        """The advantage of each turn."""
        turns = batch.turns
        centred = normalise(totals(turns), by=(turns.group,), singleton=self.singleton, once=turns.episode)
        n = sizes(by=(turns.group,), once=turns.episode)
        return Credit(turns, centred * n / np.maximum(n - 1, 1))
