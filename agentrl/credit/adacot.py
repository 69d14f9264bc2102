"""AdaCoT's selective masking: the token that decides whether to think is not trained."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from agentrl.credit.contract import Batch, Credit, Estimator, Floats, Needs
from agentrl.credit.grpo import GRPO
from agentrl.episode import Turn


@dataclass(frozen=True, slots=True)
class DecisionMasked:
    """The credit of `base`, with advantage 0 for the one token that stands behind the first `after` in a turn's sampled ids.

    Selective loss masking of AdaCoT (arXiv 2505.11896): data that are one-sided cannot wear away the choice whether to think.
    `after` are the ids of the opening tag in the policy's vocabulary; () is for a template that opens the thought itself:
    then the first drawn token decides. A turn in which `after` does not occur keeps its credit.

    The paper takes the token out of the policy loss. Here its advantage is 0: it has no policy gradient, but counts in a mean
    over tokens, and a KL term sees it. Its penalties are the transform `AdaCoT`.
    """

    base: Estimator = field(default_factory=GRPO)
    after: tuple[int, ...] = ()
    needs: ClassVar[Needs] = Needs(group=2)

    def __call__(self, batch: Batch) -> Credit:
        """An array per turn, one number for each sampled token."""
        turns = batch.turns
        credit = self.base(batch)
        advantage = [self._masked(turn, credit.advantage[t]) for t, turn in enumerate(turns.turn)]
        by_row = {key: self._masked(turns.turn[key[0]], value) for key, value in credit.by_row.items()}
        return replace(credit, advantage=advantage, by_row=by_row)

    def _masked(self, turn: Turn, advantage: float | Floats) -> Floats:
        """(S,) with a 0 at the decision; forced tokens, which are not trained, are 0 where the base left them out."""
        result = np.zeros(len(turn.sampled_ids))
        given = np.asarray(advantage, dtype=np.float64)
        result[turn.forced if given.shape == (len(result) - turn.forced,) else 0 :] = given
        at = self._decision(turn)
        if at is not None:
            result[at] = 0.0
        return result

    def _decision(self, turn: Turn) -> int | None:
        """Where the decision stands among the sampled ids."""
        ids, width = turn.sampled_ids.tolist(), len(self.after)
        starts = range(turn.forced if not width else 0, len(ids) - width)
        return next((start + width for start in starts if tuple(ids[start : start + width]) == self.after), None)
