"""SUPO: one advantage for all the stretches into which summaries cut an episode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from agentrl.credit.contract import Batch, Credit, Needs
from agentrl.credit.statistics import normalise, totals
from agentrl.episode import Episode, Turn


@dataclass(frozen=True, slots=True)
class SUPO:
    """A_i = (R_i - mean R) / (std R + eps) over episodes, each once; on every turn of every stretch, summaries included.

    Summarisation-augmented Policy Optimization (arXiv 2510.06727), eq. 3: a summary (`Turn.kind == "summary"`) ends a
    stretch, the next begins from the task and the summary, and each is a row of its own. Counting an episode once a row would
    weigh long ones more. The turn that no longer fitted is discarded before its summary is asked for: it is in no row (weight
    0). It is the turn before a summary of its agent, if that summary goes on from the same parent.

    Overlong episodes stay in the statistics and are not trained, as `to_batch` does for every estimator. No code of the
    authors exists; the numbers are those of two public reproductions. Without summaries this is GRPO.
    """

    std: Literal["sample", "population"] | None = "sample"
    singleton: float | Literal["raw"] = 0.0
    eps: float = 1e-6
    needs: ClassVar[Needs] = Needs(group=2)

    def __call__(self, batch: Batch) -> Credit:
        """The advantage of each turn."""
        turns = batch.turns
        advantage = normalise(
            totals(turns), by=(turns.group,), std=self.std, eps=self.eps, singleton=self.singleton, once=turns.episode
        )
        gone = {n: names for n, episode in enumerate(batch.episodes) if (names := _discarded(episode))}
        weight = np.ones(len(turns))
        for t in np.flatnonzero(np.isin(turns.episode, list(gone))).tolist():
            weight[t] = turns.turn[t].id not in gone[int(turns.episode[t])]
        return Credit(turns, advantage, weight=weight)


def _discarded(episode: Episode) -> set[str]:
    """The turns that a summary was asked for instead of."""
    if all(turn.kind != "summary" for turn in episode.turns):
        return set()
    latest: dict[str, Turn] = {}
    gone: set[str] = set()
    for turn in episode.turns:
        before = latest.get(turn.agent)
        if turn.kind == "summary" and before is not None and before.kind == "act" and before.parent == turn.parent:
            gone.add(before.id)
        latest[turn.agent] = turn
    return gone
