"""ARPO: group advantage over the leaves of entropy-triggered branches; a shared turn counts for all of its leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from agentrl.credit.contract import Batch, Credit, Needs
from agentrl.credit.statistics import normalise, totals
from agentrl.credit.tree import Forest


@dataclass(frozen=True, slots=True)
class ARPO:
    """A_i = (R_i - mean R) / (std R + eps) over the leaves of a group; on shared tokens the mean over the leaves behind them.

    Agentic Reinforced Policy Optimization (Dong et al. 2025, arXiv 2507.19849). Its plan is `agentrl.rollout.EntropyTree`.

    `shared="soft"`, the authors' default, is GRPO over the leaves: shared tokens stand in the row of each leaf behind them,
    with one ratio, so that the leaves' mean is their advantage in effect. "hard" says so: they get that mean in each row.
    """

    shared: Literal["soft", "hard"] = "soft"
    std: Literal["sample", "population"] | None = "sample"
    singleton: float | Literal["raw"] = 0.0
    eps: float = 1e-6
    needs: ClassVar[Needs] = Needs(group=2, forks=True)

    def __call__(self, batch: Batch) -> Credit:
        """The advantage of each turn, or of each of its tokens where leaves branch inside it."""
        turns, forest = batch.turns, Forest.of(batch)
        soft = normalise(
            totals(turns), by=(turns.group,), std=self.std, eps=self.eps, singleton=self.singleton, once=turns.episode
        )
        advantage = soft
        if self.shared == "hard":
            values, nodes = soft[forest.stretches.turn], forest.stretches.node
            advantage = forest.by_turn(values - normalise(values, by=(nodes,)))  # their mean; equal ones keep their exact value
        return Credit(turns, advantage, inherited=True, metrics=forest.metrics(soft))
