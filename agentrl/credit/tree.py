"""Episodes that share tokens, as trees: what every tree estimator asks of a batch.

A fork holds the turns that its parent had completed before the cut, to the bit, and then its own. Its first own turn may begin
with tokens that the parent drew there ("inherited" ones: forced in the fork, but sampled by the policy). All forks of an
episode, and theirs, are leaves of one tree. A node is a stretch of a turn with all before it: turns are cut wherever a fork of
the batch begins inside them, so that a leaf holds a node wholly or not at all. A turn's id says where in the workflow it
stands, which a shared turn and the one drawn anew in its place have in common; its seed tells them apart, for it is derived
from the episode that drew it.

Legend: E episodes (leaves), T trained turns, as in `agentrl.credit.contract`; M stretches of all turns, N of the trained ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise, takewhile
from typing import TypeAlias

import numpy as np

from agentrl.credit.contract import Batch, Credit, Floats, Ints
from agentrl.episode import Episode, Turn, VersionSpan

Known: TypeAlias = Mapping[str, Episode]
"""The episodes of the groups by id, lost ones too: where the line of a fork leads through."""


@dataclass(frozen=True, slots=True)
class Stretches:
    """The stretches of the trained turns, in their order; all (N,). A turn in which no fork begins is one stretch."""

    turn: Ints
    """Index of its turn in the batch."""
    node: Ints
    start: Ints
    end: Ints
    """It is [start, end) of the turn's sampled tokens."""


@dataclass(frozen=True)
class Forest:
    """The trees of a batch. Nodes are numbered in the order of first sight, a child behind its parent; an episode is one leaf."""

    batch: Batch
    known: Known
    tree: Ints
    """(E,) index of the tree of each episode."""
    nodes: Ints
    """(M,) the nodes of each episode's stretches, trained or not, root first; one episode after the other."""
    lengths: Ints
    """(E,) how many of them an episode has."""
    cut: Mapping[tuple[int, int], tuple[int, ...]]
    """(episode, place of a turn in it) -> where its stretches begin, for turns of several."""

    @classmethod
    def of(cls, batch: Batch) -> Forest:
        """Trees by `fork_of`, through episodes that were lost as well."""
        known = {episode.id: episode for group in batch.groups for episode in group.episodes}
        trees: dict[str, int] = {}
        tree = [trees.setdefault(_root(episode, known), len(trees)) for episode in batch.episodes]
        drawn, cuts = _cuts(batch.episodes, tree, known)
        numbers: dict[tuple[int, str, int], int] = {}
        nodes: list[int] = []
        lengths: list[int] = []
        several: dict[tuple[int, int], tuple[int, ...]] = {}
        for leaf, episode in enumerate(batch.episodes):
            at, begun, split = -1 - tree[leaf], len(nodes), cuts.get(tree[leaf])
            for place, turn in enumerate(episode.turns):
                name = turn.id
                if split is None or ((leaf, place) not in drawn and (name, turn.seed) not in split):
                    at = numbers.setdefault((at, name, turn.seed), len(numbers))
                    nodes.append(at)
                    continue
                pieces = drawn[leaf, place] if (leaf, place) in drawn else ((turn, 0),)
                parts = list(_stretches(pieces, len(turn.sampled_ids), split))
                several[leaf, place] = tuple(start for _, start in parts)
                for seed, _ in parts:
                    at = numbers.setdefault((at, name, seed), len(numbers))
                    nodes.append(at)
            lengths.append(len(nodes) - begun)
        return cls(batch, known, _ints(tree), _ints(nodes), _ints(lengths), several)

    @cached_property
    def leaf(self) -> Ints:
        """(M,) the episode of each stretch."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @cached_property
    def ends(self) -> Ints:
        """(E,) where in `nodes` each episode's stretches end."""
        return np.cumsum(self.lengths)

    @property
    def paths(self) -> tuple[Ints, ...]:
        """For each episode the nodes of its stretches, root first."""
        return tuple(self.nodes[end - length : end] for end, length in zip(self.ends, self.lengths, strict=True))

    @cached_property
    def group(self) -> Ints:
        """(E,) the group of each episode."""
        index = {episode.id: number for number, group in enumerate(self.batch.groups) for episode in group.episodes}
        return _ints([index[episode.id] for episode in self.batch.episodes])

    @cached_property
    def rewards(self) -> Floats:
        """(E,) whole reward of each episode, see `whole_rewards`."""
        return whole_rewards(self.batch)

    @cached_property
    def stretches(self) -> Stretches:
        """Those of the trained turns."""
        turns, places = self.batch.turns, self._places
        counts = [len(episode.turns) for episode in self.batch.episodes]
        offset = np.cumsum([0, *counts])[:-1]
        size = np.ones(sum(counts), dtype=np.int64)  # of each turn of each episode: how many stretches
        for (leaf, place), starts in self.cut.items():
            size[offset[leaf] + place] = len(starts)
        at = offset[turns.episode] + places
        turn = np.repeat(np.arange(len(turns)), size[at])
        first = (np.cumsum(size) - size)[at]
        number = np.arange(len(turn)) - np.repeat(np.cumsum(size[at]) - size[at], size[at])
        start, end = np.zeros(len(turn), np.int64), _ints([len(each.sampled_ids) for each in turns.turn])[turn]
        for n in np.flatnonzero(size[at][turn] > 1).tolist():
            starts = self.cut[int(turns.episode[turn[n]]), int(places[turn[n]])]
            start[n] = starts[number[n]]
            end[n] = starts[number[n] + 1] if number[n] + 1 < len(starts) else end[n]
        return Stretches(turn, self.nodes[np.repeat(first, size[at]) + number], start, end)

    @cached_property
    def _places(self) -> Ints:
        """(T,) where in its episode each trained turn stands."""
        turns = self.batch.turns
        counts = np.bincount(turns.episode, minlength=len(self.lengths))
        places = np.arange(len(turns)) - np.repeat(np.cumsum(counts) - counts, counts)
        for leaf in np.flatnonzero(counts != [len(episode.turns) for episode in self.batch.episodes]).tolist():
            by_id = {turn.id: at for at, turn in enumerate(self.batch.episodes[leaf].turns)}
            for t in np.flatnonzero(turns.episode == leaf).tolist():
                places[t] = by_id[turns.turn[t].id]
        return places

    @cached_property
    def trained(self) -> Ints:
        """(T,) how many tokens of each turn are trained if inherited ones are, too (`Credit.inherited`)."""
        turns = self.batch.turns
        tokens = turns.length.copy()
        for t in np.flatnonzero([turn.forced > 0 for turn in turns.turn]).tolist():
            turn = as_drawn(turns.turn[t], self.batch.episodes[int(turns.episode[t])], self.known)
            tokens[t] = len(turn.sampled_ids) - turn.forced
        return tokens

    def prefix(self) -> Ints:
        """(E,) the node with which what a fork shares with its parent ends; -1 - group for any other, and one that shares nothing.

        A fork whose parent is not in its group is any other.
        """
        found = -1 - self.group
        for leaf, (episode, end, length) in enumerate(zip(self.batch.episodes, self.ends, self.lengths, strict=True)):
            parent = self.known.get(episode.fork_of or "")
            kept = shared(episode, parent)
            if parent is not None and kept + int(self._inherits(leaf, kept)):
                extra = sum(len(self.cut[leaf, place]) - 1 for place in range(kept) if (leaf, place) in self.cut)
                inside = sum(start < episode.turns[kept].forced for start in self.cut[leaf, kept]) if self._inherits(leaf, kept) else 0
                found[leaf] = self.nodes[end - length + kept + extra + inside - 1]
        return found

    def first_sight(self) -> np.ndarray:
        """(N,) whether a trained stretch is the first of the batch at its node: the others are copies of it in other leaves."""
        node = self.stretches.node
        first = np.zeros(len(node), dtype=np.bool_)
        first[np.unique(node, return_index=True)[1]] = True
        return first
