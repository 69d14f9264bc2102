"""Credit of demonstrations: every turn counts the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from agentrl.credit.contract import Batch, Credit, Needs


@dataclass(frozen=True, slots=True)
class Imitation:
    """Advantage 1 for each turn of an episode whose outcome is at least `least` (None = of any): supervised warm starts."""

    least: float | None = None
    needs: ClassVar[Needs] = Needs()

    def __call__(self, batch: Batch) -> Credit:
        turns = batch.turns
        good = np.ones(len(turns)) if self.least is None else (turns.outcome >= self.least).astype(np.float64)
        return Credit(turns, np.ones(len(turns)), weight=good)
