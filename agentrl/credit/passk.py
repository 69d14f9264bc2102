"""Pass@k training: the advantage of an episode in the sets of k that hold it."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb, sqrt
from typing import ClassVar

import numpy as np

from agentrl.credit.contract import Batch, Credit, Floats, Needs
from agentrl.credit.statistics import totals
from agentrl.errors import UserError


@dataclass(frozen=True, slots=True)
class PassAtK:
    """A_i = (mean of max R over the k-subsets of the group with i - the mean over all) / (std over all + eps).

    Chen et al. 2025, "Pass@k Training" (arXiv 2508.10751), analytic derivation: all C(n, k) subsets are taken
    as groups, a subset's reward is its best, and an episode's advantage the mean of those of its subsets; the deviation is
    the population's. For rewards 0 and 1 this is the paper's closed form, (1 - p) / s for a right and (1 - p - C(wrong - 1, k
    - 1) / C(n - 1, k - 1)) / s for a wrong one, p = 1 - C(wrong, k) / C(n, k) and s = sqrt(p (1 - p)). Any other reward is
    this library's extension by the same definition. k = 1 is GRPO with the population deviation. The paper adds no eps; 0
    gives its numbers.

    n is how many of the group ended. With n <= k nothing can be told apart: credit is 0.
    """

    k: int = 4
    eps: float = 1e-6
    needs: ClassVar[Needs] = Needs(group=2)

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UserError(f"pass@k needs k >= 1, got PassAtK(k={self.k})")

    def __call__(self, batch: Batch) -> Credit:
        """The advantage of each turn. `UserError` for a group that was asked for no more than k episodes."""
        turns = batch.turns
        for group in batch.groups:
            if max(group.wanted, len(group.episodes)) <= self.k:
                raise UserError(f"pass@{self.k} of group {group.id}, which has {group.wanted} episodes: all credit would be 0; "
                                f"let rollout.size be above {self.k}, or set credit.k")  # fmt: skip
        advantage, reward = np.zeros(len(turns)), totals(turns)
        for number in np.unique(turns.group).tolist():
            mine = np.flatnonzero(turns.group == number)
            _, first, episode = np.unique(turns.episode[mine], return_index=True, return_inverse=True)
            advantage[mine] = self._of_group(reward[mine][first])[episode.reshape(-1)]
        return Credit(turns, advantage)

    def _of_group(self, rewards: Floats) -> Floats:
        """(n,) rewards of episodes -> (n,) advantages. Ascending, the best of a subset stands at its highest place."""
        n, k = len(rewards), self.k
        order = np.argsort(rewards, kind="stable")
        ascending = rewards[order].tolist()
        if n <= k or ascending[k - 1] == ascending[-1]:  # every subset has the same best
            return np.zeros(n)
        best = [comb(place, k - 1) / comb(n, k) for place in range(n)]  # share of the subsets whose best stands at `place`
        mean = sum(share * value for share, value in zip(best, ascending, strict=True))
        std = sqrt(sum(share * (value - mean) ** 2 for share, value in zip(best, ascending, strict=True)))
        # of the C(n - 1, k - 1) subsets with the one at `place`: it is the best, or one above it is
        above = [comb(place - 1, k - 2) * value if k > 1 and place else 0.0 for place, value in enumerate(ascending)]
        behind = np.cumsum(above[::-1])[::-1] - np.array(above)
        own = np.array([comb(place, k - 1) * value for place, value in enumerate(ascending)])
        result = np.zeros(n)
        result[order] = ((own + behind) / comb(n - 1, k - 1) - mean) / (std + self.eps)
        return result
