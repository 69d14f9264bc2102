"""Tree-OPO: a rollout from a prefix against the value of that prefix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from agentrl.credit.contract import Batch, Credit, Needs
from agentrl.credit.statistics import normalise
from agentrl.credit.tree import Forest, shared

_VALUES: dict[str, Callable[[np.ndarray], float]] = {"mean": np.mean, "max": np.max, "min": np.min}


@dataclass(frozen=True, slots=True)
class TreeOPO:
    """A_i = R_i - V(prefix of i), centred in the group, no deviation: the heuristic of Tree-OPO (arXiv 2509.09284).

    The prefix is what a fork shares with its parent, the task for any other rollout; V is the mean of the leaves below it
    (the paper's expectation), their max (optimistic) or min (pessimistic). What a fork did not draw is not trained in it.
    A group with one leaf left gets 0. The paper takes its prefixes from a teacher's tree, and has a quadratic programme in the
    heuristic's place as well, which is not here.
    """

    value: Literal["mean", "max", "min"] = "mean"
    needs: ClassVar[Needs] = Needs(group=2, forks=True)

    def __call__(self, batch: Batch) -> Credit:
        """The advantage of each turn; weight 0 for those of a prefix."""
        turns, forest = batch.turns, Forest.of(batch)
        known = {episode.id: episode for group in batch.groups for episode in group.episodes}
        kept = [shared(episode, known.get(episode.fork_of or "")) for episode in batch.episodes]
        reward = forest.rewards
        gain = np.zeros(len(kept))
        for leaf, depth in enumerate(kept):
            below = (forest.ancestors(depth) == forest.ancestors(depth)[leaf]) & (forest.group == forest.group[leaf])
            if not (reward[below] == reward[leaf]).all():  # exactly 0, whatever rounding would give
                gain[leaf] = reward[leaf] - _VALUES[self.value](reward[below])
        centred = normalise(gain, by=(forest.group,))
        places = [{turn.id: at for at, turn in enumerate(episode.turns)} for episode in batch.episodes]
        pairs = zip(turns.episode.tolist(), turns.turn, strict=True)
        own = np.array([places[leaf][turn.id] >= kept[leaf] for leaf, turn in pairs], dtype=np.float64)
        zero = float(np.mean(centred == 0.0)) if len(centred) else 0.0
        return Credit(turns, centred[turns.episode], weight=own, metrics={"credit/zero": zero})
