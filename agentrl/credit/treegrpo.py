"""Tree-GRPO: leaves against those of their tree, and against all of their task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from agentrl.credit.contract import Batch, Credit, Needs
from agentrl.credit.statistics import combine, normalise, totals
from agentrl.credit.tree import Forest


@dataclass(frozen=True, slots=True)
class TreeGRPO:
    """A = A_intra + A_inter (Ji et al. 2025, arXiv 2509.21240): GRPO over the leaves of a tree, and over all of the group.

    `form` is what the authors' code calls: "sum" tree, "intra" tree_inner, "nested" tree_2norm (the inter-tree advantage,
    normalised again inside the tree); "inter" is GRPO. Each leaf's advantage is on all tokens of its path, so that shared
    ones are trained with the sum over the leaves behind them. A tree or group with one leaf left gives that term `singleton`;
    verl would give the raw reward.
    """

    form: Literal["sum", "intra", "inter", "nested"] = "sum"
    std: Literal["sample", "population"] | None = "sample"
    singleton: float | Literal["raw"] = 0.0
    eps: float = 1e-6
    needs: ClassVar[Needs] = Needs(group=2, forks=True)

    def __call__(self, batch: Batch) -> Credit:
        """The advantage of each turn."""
        turns = batch.turns
        forest = Forest.of(batch)
        tree = forest.tree[turns.episode]

        def scored(values: np.ndarray, by: np.ndarray) -> np.ndarray:
            return normalise(values, by=(by,), std=self.std, eps=self.eps, singleton=self.singleton, once=turns.episode)

        reward = totals(turns)
        inter = scored(reward, turns.group)
        if self.form == "inter":
            advantage = inter
        elif self.form == "nested":
            advantage = scored(inter, tree)
        else:
            intra = scored(reward, tree)
            advantage = intra if self.form == "intra" else combine(intra, inter)
        return Credit(turns, advantage, inherited=True, metrics=forest.metrics(advantage))
