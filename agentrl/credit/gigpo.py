"""GiGPO: a group baseline over episodes, and one over all turns of the group that stood in the same state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from agentrl.credit.contract import Batch, Credit, Floats, Ints, Needs
from agentrl.credit.statistics import combine, normalise, returns, totals


@dataclass(frozen=True, slots=True)
class GiGPO:
    """A = A_E + omega A_S (Feng et al. 2025, arXiv 2505.10978).

    A_E compares whole episodes of a group (eq. 3), A_S the return-to-go of turns of a group that began in the same state
    (eqs. 6 and 7; exact match of `State.before`). Both subtract the mean, and divide by `std` + eps if it is given; None is
    the default of the authors' code ("mean_norm"), "sample" its "mean_std_norm".

    `statistics="trajectories"` counts each episode once, as the paper does; "rows" counts it once for each of its turns, as
    the authors' code does by default. `invalid_penalty` is subtracted from both scores of a turn that is not valid, after the
    returns (0.1 in the code). A state seen once gives A_S = 0; an episode alone in its group gives A_E = `singleton`.
    """

    gamma: float = 0.95
    omega: float = 1.0
    std: Literal["sample", "population"] | None = None
    statistics: Literal["trajectories", "rows"] = "trajectories"
    invalid_penalty: float = 0.0
    singleton: float | Literal["raw"] = 0.0
    eps: float = 1e-6
    needs: ClassVar[Needs] = Needs(state=True, group=2)

    def __call__(self, batch: Batch) -> Credit:
        """The advantage of each turn."""
        turns = batch.turns
        penalty = np.where(turns.valid, 0.0, self.invalid_penalty)
        once = turns.episode if self.statistics == "trajectories" else None
        episode_level = normalise(
            totals(turns) - penalty, by=(turns.group,), std=self.std, eps=self.eps, singleton=self.singleton, once=once
        )
        state_level = normalise(
            returns(turns, self.gamma) - penalty, by=(turns.group, turns.state), std=self.std, eps=self.eps, singleton=0.0
        )
        advantage = combine(episode_level, state_level, weights=(1.0, self.omega))
        return Credit(turns, advantage, metrics=_metrics(advantage, turns.group, turns.state))


def _metrics(advantage: Floats, group: Ints, state: Ints) -> dict[str, float]:
    """The share of turns without signal, and of turns whose state another turn of the group saw as well."""
    if not len(advantage):
        return {"credit/zero": 0.0, "credit/anchored": 0.0}
    _, inverse, counts = np.unique(np.stack((group, state)), axis=1, return_inverse=True, return_counts=True)
    shared = counts[inverse.reshape(-1)] > 1
    return {"credit/zero": float(np.mean(advantage == 0.0)), "credit/anchored": float(np.mean(shared))}
