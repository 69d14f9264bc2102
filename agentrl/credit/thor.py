"""THOR: whole episodes against each other, and failed steps taken again against each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from agentrl.credit.contract import Batch, Credit, Needs
from agentrl.credit.statistics import normalise
from agentrl.episode import Episode, Group, Turn
from agentrl.errors import UserError


@dataclass(frozen=True, slots=True)
class THOR:
    """A_i = (R_i - mean R) / (std R + eps) over clean episodes; and over the forks of one cut, R = execution passed.

    Tool-integrated Hierarchical Optimization via RL (arXiv 2509.13761). Episode level: R is the outcome. An episode with a
    tool call that failed, an invalid turn or fewer than `min_tokens` sampled tokens is dropped before the statistics, and so
    is a group of which less than the share `keep` is left. Step level: episodes that fork another of their group at one cut
    (`fork_of`, `fork_cut`) are a group of their own; of each, the first turn that is not the parent's is trained, with reward
    1 if all its tool calls went well, else 0. A fork without such a call is dropped. Turns without credit have weight 0:
    constant groups leave the loss, too.

    In the authors' code a step goes on from 100 tokens before its failed code (the fork's forced tokens: the rollout plan's
    business) and an odd answer box drops an episode, for which an invalid turn stands here. Their 0.01 NLL on tokens of
    positive advantage is the objective's.
    """

    min_tokens: int = 150
    keep: float = 0.5
    std: Literal["sample", "population"] | None = "sample"
    singleton: float | Literal["raw"] = 0.0
    eps: float = 1e-6
    needs: ClassVar[Needs] = Needs(group=2, stopped=True)

    def __call__(self, batch: Batch) -> Credit:
        """The advantage of each turn. `UserError` for a fork whose parent is not in its group."""
        turns = batch.turns
        clean = {episode.id for group in batch.groups for episode in self._clean(group)}
        whole = np.array([episode.id in clean for episode in batch.episodes], np.bool_)[turns.episode]
        again = _taken_again(batch)
        advantage = np.zeros(len(turns))
        advantage[whole] = normalise(
            turns.outcome[whole], by=(turns.group[whole],), std=self.std, eps=self.eps, singleton=self.singleton,
            once=turns.episode[whole],
        )  # fmt: skip
        at, cut, passed = (np.array(column, np.int64) for column in (zip(*again, strict=True) if again else ((), (), ())))
        advantage[at] = normalise(passed, by=(turns.group[at], cut), std=self.std, eps=self.eps, singleton=self.singleton)
        return Credit(turns, advantage, weight=(advantage != 0.0).astype(np.float64))

    def _clean(self, group: Group) -> Iterator[Episode]:
        """The whole episodes that are compared, if there are enough of them."""
        asked = [episode for episode in group.episodes if episode.fork_of is None]
        kept = [episode for episode in group.finished if episode.fork_of is None and self._is_clean(episode)]
        if len(kept) >= self.keep * len(asked):
            yield from kept

    def _is_clean(self, episode: Episode) -> bool:
        sampled = sum(len(turn.sampled_ids) for turn in episode.turns)
        return sampled >= self.min_tokens and all(turn.valid and _went_well(turn) for turn in episode.turns)


def _went_well(turn: Turn) -> bool:
    return all(call.status == "ok" for call in turn.tool_calls)


def _taken_again(batch: Batch) -> list[tuple[int, int, int]]:
    """For each fork whose first own turn called a tool: that turn's index, the number of its cut, 1 if it went well."""
    turns = batch.turns
    forks = np.array([episode.fork_of is not None for episode in batch.episodes], np.bool_)
    of_forks = np.flatnonzero(forks[turns.episode]).tolist() if len(turns) else []
    place = {(int(turns.episode[t]), turns.turn[t].id): t for t in of_forks}
    parents = {episode.id: episode for group in batch.groups for episode in group.episodes}
    cuts: dict[tuple[str, int], int] = {}
    found: list[tuple[int, int, int]] = []
    for number, episode in enumerate(batch.episodes):
        if episode.fork_of is None:
            continue
        if episode.fork_of not in parents:
            raise UserError(
                f"THOR: episode {episode.id} forks {episode.fork_of}, which is in no group of the batch; a fork must be in its "
                "parent's group, so that the turns they share can be told from its own"
            )
        turn = _first_own(episode, parents[episode.fork_of])
        if turn is not None and turn.tool_calls and (number, turn.id) in place:
            cut = cuts.setdefault((episode.fork_of, episode.fork_cut), len(cuts))
            found.append((place[number, turn.id], cut, int(_went_well(turn))))
    return found


def _first_own(fork: Episode, parent: Episode) -> Turn | None:
    """A turn after the cut may have its parent's name, for names are places in the journal; its seed is another."""
    shared = {(turn.id, turn.seed) for turn in parent.turns}
    return next((turn for turn in fork.turns if (turn.id, turn.seed) not in shared), None)
