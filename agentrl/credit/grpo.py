"""GRPO: an episode's reward against those of its group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from agentrl.credit.contract import Batch, Credit, Needs
from agentrl.credit.statistics import normalise, totals


@dataclass(frozen=True, slots=True)
class GRPO:
    """A_i = (R_i - mean R) / (std R + eps) over the episodes of a group, each once; the same on every turn of an episode.

    R is the episode's whole reward: its outcome and the rewards of its turns. Shao et al. 2024 (arXiv 2402.03300), eq. 4.1.2.
    `std="sample"` and eps 1e-6 are verl's; `std=None` is `DrGRPO`. A group of one episode gets `singleton`: 0, because its
    siblings may merely have been lost; "raw" is what verl does.
    """

    std: Literal["sample", "population"] | None = "sample"
    singleton: float | Literal["raw"] = 0.0
    eps: float = 1e-6
    needs: ClassVar[Needs] = Needs(group=2)

    def __call__(self, batch: Batch) -> Credit:
        """The advantage of each turn."""
        turns = batch.turns
        advantage = normalise(
            totals(turns), by=(turns.group,), std=self.std, eps=self.eps, singleton=self.singleton, once=turns.episode
        )
        return Credit(turns, advantage, metrics={"credit/zero": float(np.mean(advantage == 0.0)) if len(turns) else 0.0})


@dataclass(frozen=True, slots=True)
class DrGRPO(GRPO):
    """A_i = R_i - mean R: GRPO without the deviation, which weighs nearly solved and nearly hopeless tasks more.

    Liu et al. 2025 (arXiv 2503.20783). Its other half is the loss: the sum over an episode's tokens, not their mean.
    """

    std: Literal["sample", "population"] | None = None
