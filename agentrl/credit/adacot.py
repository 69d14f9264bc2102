"""AdaCoT's selective masking: the token that decides whether to think is not trained."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from agentrl.credit.contract import Batch, Bools, Credit, Estimator, Needs
from agentrl.credit.grpo import GRPO
from agentrl.credit.masks import everything, over_sampled
from agentrl.credit.tree import as_drawn
from agentrl.episode import Turn


@dataclass(frozen=True, slots=True)
class DecisionMasked:
    """A = that of `base`, without the one token that stands behind the first `after` in a turn's sampled ids.

    Selective loss masking of AdaCoT (arXiv 2505.11896): data that are one-sided cannot wear away the choice whether to think.
    `after` are the ids of the opening tag in the policy's vocabulary; () is for a template that opens the thought itself:
    then the first drawn token decides. The token is out of the whole loss and of its means, as in the paper's policy loss. A
    turn in which `after` does not occur keeps all of its tokens. AdaCoT's penalties are the transform `AdaCoT`.
    """

    base: Estimator = field(default_factory=GRPO)
    after: tuple[int, ...] = ()
    needs: ClassVar[Needs] = Needs(group=2)

    def __call__(self, batch: Batch) -> Credit:
        """The base's, with a mask."""
        credit = self.base(batch)
        turns = batch.turns.turn
        if credit.inherited:
            known = {episode.id: episode for group in batch.groups for episode in group.episodes}
            leaves = [batch.episodes[leaf] for leaf in batch.turns.episode.tolist()]
            turns = tuple(as_drawn(turn, leaf, known) for turn, leaf in zip(turns, leaves, strict=True))
        masks = [everything(turn) for turn in turns] if credit.mask is None else credit.mask
        return replace(credit, mask=[self._undecided(turn, mask) for turn, mask in zip(turns, masks, strict=True)])

    def _undecided(self, turn: Turn, mask: Bools) -> Bools:
        result = over_sampled(turn, mask)
        ids, width = turn.sampled_ids.tolist(), len(self.after)
        for start in range(turn.forced if not width else 0, len(ids) - width):
            if tuple(ids[start : start + width]) == self.after:
                result[start + width] = False
                break
        return result
