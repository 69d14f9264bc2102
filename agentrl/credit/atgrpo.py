"""AT-GRPO: a turn against the others that the same agent might have taken in its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from agentrl.credit.contract import Batch, Credit, Ints, Needs
from agentrl.credit.statistics import combine, normalise, sizes


@dataclass(frozen=True, slots=True)
class ATGRPO:
    """A = (r - mean r) / (std r + eps) over turns of one agent, index and state; r = alpha team + local.

    Agent- and turn-wise GRPO (arXiv 2510.11062). `Turn.candidate` says which turns were drawn in one place: those of one set
    are compared. A turn that is in none is compared with the turns of its group that have its agent, index and
    `State.before`. Local is what was given to an agent, team the rest, and the outcome, which the candidates of one episode
    share.

    alpha is 1 in the paper as far as known and 0.7 in the authors' documentation. The authors' code gives a group of one 0 as
    soon as any group of the batch has two members, and its raw reward otherwise; here it gets `singleton`. Their filters of
    groups are not here: a group of equal rewards gets exactly 0.
    """

    alpha: float = 1.0
    std: Literal["sample", "population"] | None = "sample"
    singleton: float | Literal["raw"] = 0.0
    eps: float = 1e-6
    needs: ClassVar[Needs] = Needs(state=True)

    def __call__(self, batch: Batch) -> Credit:
        """The advantage of each turn."""
        turns = batch.turns
        place = _places(batch)
        reward = combine(turns.reward - turns.local + turns.outcome, turns.local, weights=(self.alpha, 1.0))
        like = tuple(np.where(place < 0, column, 0) for column in (turns.agent, turns.index, turns.state))
        by = (turns.group, place, *like)
        advantage = normalise(reward, by=by, std=self.std, eps=self.eps, singleton=self.singleton)
        return Credit(turns, advantage, metrics={"credit/compared": float(np.mean(sizes(by) > 1)) if len(turns) else 0.0})


def _places(batch: Batch) -> Ints:
    """(T,) equal for the candidates of one set of one episode; -1 where a turn is no candidate."""
    numbers: dict[tuple[int, str], int] = {}
    found: list[int] = []
    for turn, episode in zip(batch.turns.turn, batch.turns.episode.tolist(), strict=True):
        drawn = turn.candidate
        found.append(-1 if drawn is None else numbers.setdefault((episode, drawn.set), len(numbers)))
    return np.array(found, np.int64)
