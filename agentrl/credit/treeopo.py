"""Tree-OPO: a rollout from a prefix against the value of that prefix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from agentrl.credit.contract import Batch, Credit, Floats, Needs
from agentrl.credit.statistics import normalise
from agentrl.credit.tree import Forest


@dataclass(frozen=True, slots=True)
class TreeOPO:
    """Tree-OPO (arXiv 2509.09284): rollouts from prefixes of unequal difficulty; no code of the authors exists.

    The prefix is what a fork shares with its parent, the task for any other rollout; it is not trained.

    `form="heuristic"`: A_i = R_i - V(prefix of i), centred in the group, no deviation. V is the mean of the leaves below the
    prefix (the paper's expectation), their max (optimistic) or min (pessimistic).

    "soft" and "hard" are its quadratic programme: of all n advantages that sum to 0, whose squares sum to at most (hard:
    exactly) n, and that set each success above the failures it is ordered against by a margin, those nearest to the rewards.
    With rewards 0 and 1 and a margin of at most 1 the order never binds (pairs that contradict the rewards are dropped), nor
    does the soft bound: the solution is R minus the group's mean, hard: divided by the population deviation. With other
    rewards this is the same formula, not the programme.

    A group with one leaf left, or of equal rewards, gets 0.
    """

    form: Literal["heuristic", "soft", "hard"] = "heuristic"
    value: Literal["mean", "max", "min"] = "mean"
    """V of the heuristic."""
    needs: ClassVar[Needs] = Needs(group=2, forks=True)

    def __call__(self, batch: Batch) -> Credit:
        """The advantage of each turn; weight 0 for those of a prefix."""
        forest = Forest.of(batch)
        prefix, own = forest.prefixes()
        group = (forest.group,)
        if self.form == "heuristic":
            advantage = normalise(self._gains(forest, prefix), by=group)
        else:
            advantage = normalise(forest.rewards, by=group, std="population" if self.form == "hard" else None, eps=0.0)
        metrics = forest.metrics(advantage[batch.turns.episode])
        return Credit(batch.turns, advantage[batch.turns.episode], weight=own.astype(np.float64), metrics=metrics)

    def _gains(self, forest: Forest, prefix: np.ndarray) -> Floats:
        """(E,) R - V(prefix); exactly 0 where all leaves below it have one reward."""
        tasks = np.arange(len(prefix))
        leaf, node = np.concatenate((tasks, forest.leaf)), np.concatenate((-1 - forest.group, forest.nodes))
        at = np.flatnonzero(node == prefix[leaf])  # one for each episode: its prefix stands on its path once
        of = np.empty(len(prefix), dtype=np.int64)
        of[leaf[at]] = at
        if self.value == "mean":
            return normalise(forest.rewards[leaf], by=(node,))[of]
        _, number = np.unique(node, return_inverse=True)
        best = np.full(int(number.max(initial=-1)) + 1, -np.inf)
        sign = 1.0 if self.value == "max" else -1.0
        np.maximum.at(best, number, sign * forest.rewards[leaf])
        return forest.rewards - sign * best[number[of]]
