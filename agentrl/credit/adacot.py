"""AdaCoT's selective masking: the token that decides whether to think is not trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import ClassVar

import numpy as np

from agentrl.credit.contract import Batch, Credit, Estimator, Ints, Needs
from agentrl.credit.grpo import GRPO
from agentrl.credit.masks import over_sampled
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
        starts = np.cumsum([0, *(len(turn.sampled_ids) for turn in turns)])
        trained = np.ones(starts[-1], np.bool_)
        for turn, start in zip(turns, starts.tolist(), strict=False):
            if turn.forced:
                trained[start : start + turn.forced] = False
        trained[self._decisions(turns, starts)] = False
        masks = [trained[start:end] for start, end in pairwise(starts.tolist())]
        if credit.mask is not None:
            masks = [mask & over_sampled(turn, own) for turn, mask, own in zip(turns, masks, credit.mask, strict=True)]
        return replace(credit, mask=masks)

    def _decisions(self, turns: Sequence[Turn], starts: Ints) -> Ints:
        """Where the decisions stand among the sampled ids of all turns, put one behind the other."""
        if not self.after:
            found = starts[:-1] + np.array([turn.forced for turn in turns], np.int64)
            return found[found < starts[1:]]
        width = len(self.after)
        ids = np.concatenate([turn.sampled_ids for turn in turns]) if turns else np.zeros(0, np.int32)
        opened = np.ones(max(len(ids) - width + 1, 0), np.bool_)
        for n, token in enumerate(self.after):
            opened &= ids[n : n + len(opened)] == token
        at = np.flatnonzero(opened)
        turn = np.searchsorted(starts, at, side="right") - 1
        inside = at + width < starts[turn + 1]
        _, first = np.unique(turn[inside], return_index=True)
        return at[inside][first] + width
