"""GTPO: each turn's discounted return against those of the same turn of the group."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from agentrl.credit.contract import Batch, Credit, Needs
from agentrl.credit.statistics import alone, normalise, returns


@dataclass(frozen=True, slots=True)
class GTPO:
    """A_t = (R_t - mean R) / (std R + eps), R_t = r_t + gamma R_{t+1}: Group Turn Policy Optimization (arXiv 2511.14846).

    r is what the turn was given, minus `invalid_penalty` if its output broke the format, and on the last turn the outcome.
    `over="index"` compares a turn with the turns of its group that have its agent and turn index; "group" with all turns of
    the group. A turn without another to compare it with gets `singleton`, and so do all turns of an episode alone in its group.

    The authors released no code: that "group turn" means `over="index"`, the population deviation and gamma = 0.9 are this
    library's reading, so each is a field. Partial credit for failed rollouts is a reward transform,
    `agentrl.transforms.CodeSimilarity`.
    """

    gamma: float = 0.9
    over: Literal["index", "group"] = "index"
    std: Literal["sample", "population"] | None = "population"
    invalid_penalty: float = 0.1
    singleton: float | Literal["raw"] = 0.0
    needs: ClassVar[Needs] = Needs(group=2)

    def __call__(self, batch: Batch) -> Credit:
        """The advantage of each turn."""
        turns = batch.turns
        rewarded = replace(turns, reward=turns.reward - np.where(turns.valid, 0.0, self.invalid_penalty))
        reward, lone = returns(rewarded, self.gamma), alone(turns)
        by = (turns.group, turns.agent, turns.index) if self.over == "index" else (turns.group,)
        advantage = normalise(reward, by=by, std=self.std, singleton=self.singleton)
        advantage[lone] = reward[lone] if self.singleton == "raw" else self.singleton
        return Credit(turns, advantage, metrics={"credit/zero": float(np.mean(advantage == 0.0)) if len(turns) else 0.0})
