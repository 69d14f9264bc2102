"""ARPO: group advantage over the leaves of entropy-triggered branches; a shared turn counts for all of its leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from agentrl.credit.contract import Batch, Credit, Floats, Ints, Needs
from agentrl.credit.statistics import normalise, totals
from agentrl.credit.tree import Forest


@dataclass(frozen=True, slots=True)
class ARPO:
    """Agentic Reinforced Policy Optimization (Dong et al. 2025, arXiv 2507.19849). Its plan is `agentrl.rollout.EntropyTree`.

    `shared="soft"`, the authors' default, is GRPO over the leaves: a shared turn stands in the row of each leaf behind it, with
    one ratio, so that its advantage is their mean in effect. "hard" says so: a shared turn gets that mean in each of the rows.
    """

    shared: Literal["soft", "hard"] = "soft"
    std: Literal["sample", "population"] | None = "sample"
    singleton: float | Literal["raw"] = 0.0
    eps: float = 1e-6
    needs: ClassVar[Needs] = Needs(group=2, forks=True)

    def __call__(self, batch: Batch) -> Credit:
        """The advantage of each turn."""
        turns = batch.turns
        advantage = normalise(
            totals(turns), by=(turns.group,), std=self.std, eps=self.eps, singleton=self.singleton, once=turns.episode
        )
        if self.shared == "hard" and len(turns):
            advantage = _mean_by(advantage, Forest.of(batch).node)
        return Credit(turns, advantage, metrics={"credit/zero": float(np.mean(advantage == 0.0)) if len(turns) else 0.0})


def _mean_by(values: Floats, key: Ints) -> Floats:
    """The mean over all values of equal key, for each; equal values keep their exact value."""
    return values - normalise(values, by=(key,))
