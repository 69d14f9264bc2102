"""TreePO: a leaf against the leaves under each of its ancestors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from agentrl.credit.contract import Batch, Credit, Floats, Ints, Needs
from agentrl.credit.statistics import normalise
from agentrl.credit.tree import Forest


@dataclass(frozen=True, slots=True)
class TreePO:
    """A_i = mean over depths d of R_i - mean R of the leaves under i's ancestor at d (Li et al. 2025, arXiv 2508.17445).

    Its plan is `agentrl.rollout.SegmentTree`. Depth 0 is the task and always counts; a deeper ancestor with one leaf is passed
    over. `average="group_size"` weighs a depth by the number of those leaves. `whiten` subtracts the mean over all trained
    tokens of the batch and divides by their sample deviation (variance + 1e-8), as the authors' code does: so a group without
    differences is not at 0 beside others. An ancestor is a turn, or a stretch of one between places where rollouts branch; the
    authors count every 512 tokens, branched or not. All leaves train the tokens that they share.
    """

    average: Literal["depths", "group_size"] = "depths"
    whiten: bool = True
    singleton: float | Literal["raw"] = 0.0
    """Of a task with one leaf left; the authors' code gives its raw reward."""
    needs: ClassVar[Needs] = Needs(group=2, forks=True)

    def __call__(self, batch: Batch) -> Credit:
        """The advantage of each turn."""
        turns, forest = batch.turns, Forest.of(batch)
        tasks, groups = np.arange(len(batch.episodes)), len(batch.groups)
        leaf, node = np.concatenate((tasks, forest.leaf)), np.concatenate((forest.group, groups + forest.nodes))
        size, root = np.bincount(node)[node], np.arange(len(node)) < len(tasks)
        gain = normalise(forest.rewards[leaf], by=(node,))
        if self.singleton != 0.0:
            gain = np.where(root & (size == 1), forest.rewards[leaf] if self.singleton == "raw" else self.singleton, gain)
        share = np.where((size > 1) | root, size if self.average == "group_size" else 1.0, 0.0)
        raw = (np.bincount(leaf, share * gain) / np.bincount(leaf, share))[turns.episode]
        advantage = whitened(raw, forest.trained) if self.whiten else raw
        return Credit(turns, advantage, inherited=True, metrics=forest.metrics(raw))


def whitened(values: Floats, tokens: Ints, eps: float = 1e-8) -> Floats:
    """(value - mean) / sqrt(var + eps), where each value counts once for each of its `tokens`; equal values give exactly 0."""
    count = int(tokens.sum())
    if count < 2 or (values == values[0]).all():
        return np.zeros_like(values)
    mean = np.dot(values, tokens) / count
    return (values - mean) / np.sqrt(np.dot((values - mean) ** 2, tokens) / (count - 1) + eps)
