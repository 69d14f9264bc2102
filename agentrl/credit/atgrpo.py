"""AT-GRPO: a turn against the others that the same agent might have taken in its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from agentrl.credit.contract import Batch, Credit, Floats, Ints, Needs
from agentrl.credit.statistics import normalise, sizes
from agentrl.episode import Episode


@dataclass(frozen=True, slots=True)
class ATGRPO:
    """A = (r - mean r) / (std r + eps) over turns of one agent, index and state; r = alpha team + local.

    Agent- and turn-wise GRPO (arXiv 2510.11062). Turns drawn in one place are compared: by the plan `Candidates`, or of one set
    of `Turn.candidate`. Any other turn is compared with the turns of its group that have its agent, index and `State.before`.
    Local is what was given to an agent, team the rest, and the outcome, which the candidates of one episode share.

    A candidate of the plan is worth what was given up to the next reward point: for it, for the turns behind it, up to the
    first behind which a reward was given, and at the end if that comes before. The turns behind it share its advantage; a turn
    that several episodes share is compared and trained in the first of them.

    alpha is 1 in the paper as far as known and 0.7 in the authors' documentation. The authors' code gives a group of one 0 as
    soon as any group of the batch has two members, and its raw reward otherwise; here it gets `singleton`. Their filters of
    groups are not here: a group of equal rewards gets exactly 0.
    """

    alpha: float = 1.0
    std: Literal["sample", "population"] | None = "sample"
    singleton: float | Literal["raw"] = 0.0
    eps: float = 1e-6
    needs: ClassVar[Needs] = Needs(state=True, stopped=True)

    def __call__(self, batch: Batch) -> Credit:
        """The advantage of each turn; weight 0 for a copy of a turn that an episode before it holds."""
        turns = batch.turns
        reward = self.alpha * (turns.reward - turns.local + turns.outcome) + turns.local
        place, leader = _candidates(batch), np.arange(len(turns))
        for number, group in enumerate(batch.groups):
            if any(episode.fork_of for episode in group.episodes):
                self._branch(batch, number, place, leader, reward)
        heads = np.flatnonzero(leader == np.arange(len(turns)))
        like = tuple(np.where(place < 0, column, 0)[heads] for column in (turns.agent, turns.index, turns.state))
        by = (turns.group[heads], place[heads], *like)
        own = np.zeros(len(turns))
        own[heads] = normalise(reward[heads], by=by, std=self.std, eps=self.eps, singleton=self.singleton)
        compared = float(np.mean(sizes(by) > 1)) if len(heads) else 0.0
        weight = (leader >= 0).astype(np.float64)
        return Credit(turns, np.where(leader >= 0, own[leader], 0.0), weight, metrics={"credit/compared": compared})

    def _branch(self, batch: Batch, group: int, place: Ints, leader: Ints, reward: Floats) -> None:
        """Sets, for the turns of a group: its place; the turn that leads its stretch, itself or -1 for a copy; its reward.

        A turn was drawn in one place with another if all before them is shared, their ids are equal, and they are not.
        """
        turns = batch.turns
        rows = np.flatnonzero(turns.group == group).tolist()
        row = {(int(turns.episode[t]), turns.turn[t].id): t for t in rows}
        numbers = dict.fromkeys(int(turns.episode[t]) for t in rows)
        paths = dict(zip(numbers, _paths([batch.episodes[n] for n in numbers]), strict=True))
        drawn: dict[tuple[int, str], set[int]] = {}
        for at, node in (step for path in paths.values() for step in path):
            drawn.setdefault(at, set()).add(node)
        lowest = min(int(place.min(initial=-1)), -1)
        chosen = {at: lowest - 1 - n for n, at in enumerate(at for at, nodes in drawn.items() if len(nodes) > 1)}
        seen: set[int] = set()
        for number, path in paths.items():
            episode, head = batch.episodes[number], -1
            given, last = self._given(episode), episode.turns[-1]
            for turn, (at, node) in zip(episode.turns, path, strict=True):
                t = row.get((number, turn.id), -1)
                if at in chosen and t >= 0:
                    head, place[t], reward[t] = t, chosen[at], 0.0
                elif head >= 0 and t >= 0:
                    leader[t] = head
                if head >= 0:
                    reward[head] += given.get(turn.id, 0.0) + (given.get(None, 0.0) if turn is last else 0.0)
                if t >= 0 and node in seen:
                    leader[t] = -1
                seen.add(node)
                if turn.id in given:
                    head = -1

    def _given(self, episode: Episode) -> dict[str | None, float]:
        """alpha team + local by the turn that it was given to, or behind which it was given; None = at the end."""
        found: dict[str | None, float] = {}
        for reward in (reward for part in (*episode.turns, episode) for reward in part.rewards):
            at = reward.turn or reward.after
            found[at] = found.get(at, 0.0) + (self.alpha if reward.agent is None else 1.0) * reward.value
        return found


def _candidates(batch: Batch) -> Ints:
    """(T,) from 0 up, equal for the candidates of one set of one episode; -1 where a turn is of none."""
    numbers: dict[tuple[int, str], int] = {}
    found = np.full(len(batch.turns), -1, np.int64)
    for t, turn in enumerate(batch.turns.turn):
        if turn.candidate is not None:
            found[t] = numbers.setdefault((int(batch.turns.episode[t]), turn.candidate.set), len(numbers))
    return found


def _paths(episodes: Sequence[Episode]) -> list[list[tuple[tuple[int, str], int]]]:
    """For each turn of each episode its place, that is (the node before it, its id), and its own node."""
    nodes: dict[tuple[int, str, int], int] = {}
    paths: list[list[tuple[tuple[int, str], int]]] = []
    for episode in episodes:
        before, path = -1, list[tuple[tuple[int, str], int]]()
        for turn in episode.turns:
            node = nodes.setdefault((before, turn.id, turn.seed), len(nodes))
            path.append(((before, turn.id), node))
            before = node
        paths.append(path)
    return paths
