"""Episodes that share turns, as trees: what every tree estimator asks of a batch.

A fork holds the turns that its parent had completed before the cut, to the bit, and then its own. All forks of an episode,
and theirs, are leaves of one tree; a node is a turn with all before it, in the order in which turns were issued. A turn's id
says where in the workflow it stands, which a shared turn and the one drawn anew in its place have in common; its seed tells
them apart, for it is derived from the episode that drew it.

Legend: E episodes (leaves), T trained turns, as in `agentrl.credit.contract`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile

import numpy as np

from agentrl.credit.contract import Batch, Floats, Ints
from agentrl.episode import Episode


@dataclass(frozen=True)
class Forest:
    """The trees of a batch. Nodes are numbered in the order of first sight; an episode is one leaf, whatever its length."""

    batch: Batch
    tree: Ints
    """(E,) index of the tree of each episode."""
    paths: tuple[Ints, ...]
    """For each episode the nodes of all its turns, trained or not, root first."""

    @classmethod
    def of(cls, batch: Batch) -> Forest:
        """Trees by `fork_of`, through episodes that were lost as well; nodes by what `paths` says."""
        forks = {episode.id: episode.fork_of for group in batch.groups for episode in group.episodes}
        trees: dict[str, int] = {}
        nodes: dict[tuple[int, int, str, int], int] = {}
        tree: list[int] = []
        paths: list[Ints] = []
        for episode in batch.episodes:
            number = trees.setdefault(_root(episode, forks), len(trees))
            at, path = -1, list[int]()
            for turn in episode.turns:
                at = nodes.setdefault((number, at, turn.id, turn.seed), len(nodes))
                path.append(at)
            tree.append(number)
            paths.append(np.array(path, dtype=np.int64))
        return cls(batch, np.array(tree, dtype=np.int64), tuple(paths))

    @cached_property
    def node(self) -> Ints:
        """(T,) the node of each trained turn."""
        turns = self.batch.turns
        places = [{turn.id: at for at, turn in enumerate(episode.turns)} for episode in self.batch.episodes]
        pairs = zip(turns.episode.tolist(), turns.turn, strict=True)
        return np.array([self.paths[number][places[number][turn.id]] for number, turn in pairs], dtype=np.int64)

    @cached_property
    def group(self) -> Ints:
        """(E,) the group of each episode."""
        index = {episode.id: number for number, group in enumerate(self.batch.groups) for episode in group.episodes}
        return np.array([index[episode.id] for episode in self.batch.episodes], dtype=np.int64)

    @cached_property
    def rewards(self) -> Floats:
        """(E,) whole reward of each episode as its trained turns tell it: the sum of theirs, and the outcome."""
        sums = np.array([episode.reward for episode in self.batch.episodes], dtype=np.float64)
        np.add.at(sums, self.batch.turns.episode, self.batch.turns.reward)
        return sums

    @property
    def depth(self) -> int:
        """Turns of the longest episode."""
        return max((len(path) for path in self.paths), default=0)

    def ancestors(self, depth: int) -> Ints:
        """(E,) the node of the first `depth` turns of each episode; -1 - e for one that has fewer, which so equals no other.

        At depth 0 all episodes of a group have one ancestor, their task: 0 for all, to be taken together with `group`.
        """
        if depth == 0:
            return np.zeros(len(self.paths), dtype=np.int64)
        found = [path[depth - 1] if len(path) >= depth else -1 - number for number, path in enumerate(self.paths)]
        return np.array(found, dtype=np.int64)

    def first_sight(self) -> np.ndarray:
        """(T,) whether a trained turn is the first of the batch at its node: the others are copies of it in other leaves."""
        first = np.zeros(len(self.node), dtype=np.bool_)
        first[np.unique(self.node, return_index=True)[1]] = True
        return first


def shared(episode: Episode, parent: Episode | None) -> int:
    """With how many of its parent's turns an episode begins."""
    pairs = zip(episode.turns, parent.turns if parent is not None else (), strict=False)
    return sum(1 for _ in takewhile(lambda pair: (pair[0].id, pair[0].seed) == (pair[1].id, pair[1].seed), pairs))


def _root(episode: Episode, forks: dict[str, str | None]) -> str:
    """The episode that the line of forks began with, as far as the batch knows it."""
    name, above = episode.id, episode.fork_of
    while above is not None:
        name, above = above, forks.get(above)
    return name
