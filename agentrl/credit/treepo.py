"""TreePO: a leaf against the leaves under each of its ancestors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from agentrl.credit.contract import Batch, Credit, Floats, Ints, Needs
from agentrl.credit.statistics import normalise, sizes
from agentrl.credit.tree import Forest


@dataclass(frozen=True, slots=True)
class TreePO:
    """A_i = mean over depths d of R_i - mean R of the leaves under i's ancestor at d (Li et al. 2025, arXiv 2508.17445).

    Depth 0 is the task and always counts; a deeper ancestor with one leaf is passed over. `average="group_size"` weighs a
    depth by the number of those leaves. `whiten` subtracts the mean over all trained tokens of the batch and divides by their
    sample deviation (variance + 1e-8), as the authors' code does: so a group without differences is not at 0 beside others.
    Segments are turns here; the authors cut every 512 tokens.
    """

    average: Literal["depths", "group_size"] = "depths"
    whiten: bool = True
    singleton: float | Literal["raw"] = 0.0
    """Of a task with one leaf left; the authors' code gives its raw reward."""
    needs: ClassVar[Needs] = Needs(group=2, forks=True)

    def __call__(self, batch: Batch) -> Credit:
        """The advantage of each turn."""
        turns, forest = batch.turns, Forest.of(batch)
        total, weight = np.zeros(len(batch.episodes)), np.zeros(len(batch.episodes))
        for depth in range(forest.depth + 1):
            by = (forest.group, forest.ancestors(depth))
            size = sizes(by)
            share = (size if self.average == "group_size" else np.ones(len(size))) * ((size > 1) | (depth == 0))
            total += share * normalise(forest.rewards, by=by, singleton=self.singleton if depth == 0 else 0.0)
            weight += share
        raw = np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)[turns.episode]
        advantage = whitened(raw, turns.length) if self.whiten else raw
        return Credit(turns, advantage, metrics={"credit/zero": float(np.mean(raw == 0.0)) if len(turns) else 0.0})


def whitened(values: Floats, tokens: Ints, eps: float = 1e-8) -> Floats:
    """(value - mean) / sqrt(var + eps), where each value counts once for each of its `tokens`; equal values give exactly 0."""
    count = int(tokens.sum())
    if count < 2 or (values == values[0]).all():
        return np.zeros_like(values)
    mean = math.fsum((values * tokens).tolist()) / count
    variance = math.fsum(((values - mean) ** 2 * tokens).tolist()) / (count - 1)
    return (values - mean) / math.sqrt(variance + eps)
