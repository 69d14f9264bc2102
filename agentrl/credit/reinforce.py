"""REINFORCE++: returns whitened over the whole batch, with or without a group baseline before."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from agentrl.credit.contract import Batch, Credit, Floats, Ints, Needs
from agentrl.credit.statistics import normalise, returns, sizes, totals


@dataclass(frozen=True, slots=True)
class ReinforcePP:
    """A = (G - mean G) / (std G + eps) over all turns of the batch, whatever their group (Hu 2025, arXiv 2501.03262).

    `baseline=None`: G is the return-to-go, discounted by turn. `baseline="group"` (REINFORCE++-baseline): G is the episode's
    whole reward minus its group's mean, as in verl; an episode alone in its group then gets 0 and is in no statistic.

    `over="token"` counts a turn once for each of its trained tokens, as the paper and verl do; "turn" counts it once. The
    paper puts the KL penalty into the reward; here it is a term of the objective. verl discounts by token and has
    sqrt(variance + 1e-8) where this has the sample deviation + 1e-6.
    """

    gamma: float = 1.0
    baseline: Literal["group"] | None = None
    over: Literal["token", "turn"] = "token"
    eps: float = 1e-6
    needs: ClassVar[Needs] = Needs()

    def __call__(self, batch: Batch) -> Credit:
        """The advantage of each turn."""
        turns = batch.turns
        votes = turns.length if self.over == "token" else np.ones(len(turns), np.int64)
        if self.baseline is None:
            return Credit(turns, _whitened(returns(turns, self.gamma), votes, self.eps))
        centred = normalise(totals(turns), by=(turns.group,), once=turns.episode)
        known = sizes(by=(turns.group,), once=turns.episode) > 1
        advantage = np.zeros(len(turns))
        advantage[known] = _whitened(centred[known], votes[known], self.eps)
        return Credit(turns, advantage)


def _whitened(values: Floats, votes: Ints, eps: float) -> Floats:
    """Minus the mean, divided by the sample deviation, where a value counts as often as it has votes (at least 1)."""
    count = int(votes.sum())
    if count < 2 or (values == values[0]).all():
        return np.zeros_like(values)
    centred = values - math.fsum((values * votes).tolist()) / count
    deviation = math.sqrt(math.fsum((centred**2 * votes).tolist()) / (count - 1))
    return centred / (deviation + eps or 1.0)
