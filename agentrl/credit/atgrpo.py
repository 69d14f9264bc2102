"""AT-GRPO: a turn against the others that the same agent might have taken in its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from agentrl.credit.contract import Batch, Credit, Floats, Ints, Needs
from agentrl.credit.statistics import normalise, sizes
from agentrl.episode import Episode
from agentrl.errors import UserError


@dataclass(frozen=True, slots=True)
class ATGRPO:
    """A = (r - mean r) / (std r + eps) over turns of one agent, index and state; r = alpha team + local.

    Agent- and turn-wise GRPO (arXiv 2510.11062). Turns drawn in one place are compared: by the plan `Candidates`, or of one set of
    `Turn.candidate`. Any other turn is compared with the turns of its group that have its agent, index and `State.before`. Local
    is what was given to an agent, team the rest, and the outcome, which the candidates of one episode share.

    A candidate of the plan is worth what was given up to the next reward point: to it and to the turns behind it, the first
    rewarded one included, and the outcome if that is the episode's end. The turns behind it share its advantage; a turn that
    several episodes share is compared and trained in the first of them.

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
        """The advantage of each turn. `UserError` for a stopped episode with a reward of no turn."""
        turns = batch.turns
        place, leader = _candidates(batch), np.arange(len(turns))
        for number, group in enumerate(batch.groups):
            if any(episode.fork_of for episode in group.episodes):
                _branch(batch, number, place, leader)
        reward = self._rewards(batch, place, leader)
        heads = np.flatnonzero(leader == np.arange(len(turns)))
        like = tuple(np.where(place < 0, column, 0)[heads] for column in (turns.agent, turns.index, turns.state))
        by = (turns.group[heads], place[heads], *like)
        own = np.zeros(len(turns))
        own[heads] = normalise(reward[heads], by=by, std=self.std, eps=self.eps, singleton=self.singleton)
        compared = float(np.mean(sizes(by) > 1)) if len(heads) else 0.0
        weight = (leader >= 0).astype(np.float64)
        return Credit(turns, np.where(leader >= 0, own[leader], 0.0), weight, metrics={"credit/compared": compared})

    def _rewards(self, batch: Batch, place: Ints, leader: Ints) -> Floats:
        """(T,) alpha team + local; of a turn that the plan drew, over all its stretch."""
        turns = batch.turns
        given = self.alpha * (turns.reward - turns.local) + turns.local
        outcome = self.alpha * turns.outcome
        drawn = place <= _BY_PLAN
        if not drawn.any():
            return given + outcome
        counted = leader >= 0
        stretch = np.zeros(len(turns))
        np.add.at(stretch, leader[counted], (given + np.where(turns.last, outcome, 0.0))[counted])
        return np.where(drawn, stretch, given + outcome)


_BY_PLAN = -2
"""Places of the plan are numbered from here down, those of candidate sets from 0 up; -1 = no candidate."""


def _candidates(batch: Batch) -> Ints:
    """(T,) equal for the candidates of one set of one episode; -1 where a turn is of none."""
    numbers: dict[tuple[int, str], int] = {}
    found = np.full(len(batch.turns), -1, np.int64)
    for t, turn in enumerate(batch.turns.turn):
        if turn.candidate is not None:
            found[t] = numbers.setdefault((int(batch.turns.episode[t]), turn.candidate.set), len(numbers))
    return found


def _branch(batch: Batch, group: int, place: Ints, leader: Ints) -> None:
    """Sets place and leader of a group's turns: the turn that leads a stretch, or itself; -1 for a copy in a later episode.

    A turn was drawn in one place with another if all before them is shared, their ids are equal, and they are not.
    """
    turns = batch.turns
    rows = np.flatnonzero(turns.group == group).tolist()
    row = {(int(turns.episode[t]), turns.turn[t].id): t for t in rows}
    episodes = [(number, batch.episodes[number]) for number in dict.fromkeys(int(turns.episode[t]) for t in rows)]
    paths = _paths([episode for _, episode in episodes])
    drawn: dict[tuple[int, str], set[int]] = {}
    for path in paths:
        for at, node in path:
            drawn.setdefault(at, set()).add(node)
    seen: set[int] = set()
    first = int(place.min(initial=-1))
    number_of = {at: min(first, -1) - 1 - n for n, at in enumerate(at for at, nodes in drawn.items() if len(nodes) > 1)}
    for (number, episode), path in zip(episodes, paths, strict=True):
        _check(episode)
        head = -1
        for turn, (at, node) in zip(episode.turns, path, strict=True):
            t = row.get((number, turn.id), -1)
            if at in number_of:
                head = t
            if t >= 0:
                if at in number_of:
                    place[t] = number_of[at]
                elif head >= 0:
                    leader[t] = head
                if node in seen:
                    leader[t] = -1
            seen.add(node)
            if turn.rewards:
                head = -1


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


def _check(episode: Episode) -> None:
    if episode.status == "stopped" and episode.rewards:
        raise UserError(
            f"ATGRPO: episode {episode.id} was stopped at a reward, and its reward {episode.rewards[0].name!r} is of no turn, so it "
            "cannot be told from an outcome; give it to one: team.reward(value, turn=reply.turn)"
        )
