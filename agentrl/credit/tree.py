"""Episodes that share tokens, as trees: what every tree estimator asks of a batch.

A fork holds the turns that its parent had completed before the cut, to the bit, and then its own. Its first own turn may begin
with tokens that the parent drew there ("inherited": forced in the fork, and yet sampled by the policy). All forks of an
episode, and theirs, are leaves of one tree. A node is a stretch of a turn with all before it: turns are cut wherever a fork of
the batch begins inside them, so that a leaf holds a node wholly or not at all. A turn's id says where in the workflow it
stands, which a shared turn and the one drawn anew in its place have in common; its seed tells them apart, for it is derived
from the episode that drew it.

Legend: E episodes (leaves), T trained turns, as in `agentrl.credit.contract`; A all turns, M stretches of all turns, N
stretches of trained turns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from agentrl.credit.contract import Batch, Floats, Ints
from agentrl.episode import Episode, FloatArray, Turn, VersionSpan

if TYPE_CHECKING:
    import numpy.typing as npt

Known: TypeAlias = Mapping[str, Episode]
"""Episodes by id, lost ones too: those that the line of a fork leads through."""
_Place: TypeAlias = tuple[int, int]
"""(index of an episode, place of a turn in it)."""
_Piece: TypeAlias = tuple[Turn, int]
"""(the turn in which tokens were drawn, the first of them)."""
_Split: TypeAlias = dict[tuple[str, int], list[tuple[int, int]]]
"""Turns of one tree in which a leaf goes on anew, by id and seed -> (seed of who drew it, first token) of each stretch."""
_Memo: TypeAlias = dict[tuple[str, str], tuple[_Piece, ...]]
"""What is known already of (episode, turn)."""


@dataclass(frozen=True, slots=True)
class Stretches:
    """The stretches of the trained turns, in their order; all (N,). A turn in which no fork begins is one stretch."""

    turn: Ints
    """Index of the turn in the batch."""
    node: Ints
    start: Ints
    end: Ints
    """It is [start, end) of the turn's sampled tokens."""


@dataclass(frozen=True)
class Forest:
    """The trees of a batch. Nodes are numbered as they are first seen, a child behind its parent; an episode is one leaf."""

    batch: Batch
    known: Known
    tree: Ints
    """(E,) index of the tree of each episode."""
    nodes: Ints
    """(M,) the nodes of all stretches, trained or not: one episode after the other, root first."""
    lengths: Ints
    """(E,) how many of them an episode has."""
    cut: Mapping[_Place, tuple[int, ...]]
    """Where the stretches of a turn begin, for turns of several."""
    drawn: Mapping[_Place, tuple[_Piece, ...]]
    """Who drew a turn with forced tokens."""

    @classmethod
    def of(cls, batch: Batch) -> Forest:
        """Trees by `fork_of`, through episodes that were lost as well."""
        known = {episode.id: episode for group in batch.groups for episode in group.episodes}
        trees: dict[str, int] = {}
        tree = [trees.setdefault(_root(episode, known), len(trees)) for episode in batch.episodes]
        drawn, cuts = _cuts(batch.episodes, tree, known)
        numbers: dict[tuple[int, str, int], int] = {}
        nodes, lengths = list[int](), list[int]()
        several: dict[_Place, tuple[int, ...]] = {}
        for leaf, episode in enumerate(batch.episodes):
            at, begun, split = -1 - tree[leaf], len(nodes), cuts.get(tree[leaf])
            for place, turn in enumerate(episode.turns):
                name, seed = turn.id, turn.seed
                if split and (turn.forced or (name, seed) in split):
                    pieces = drawn.get((leaf, place))
                    parts = split.get((name, seed), [(seed, 0)]) if pieces is None else _parts(pieces, split)
                    several[leaf, place] = tuple([start for _, start in parts])
                    for drawer, _ in parts[:-1]:
                        at = numbers.setdefault((at, name, drawer), len(numbers))
                        nodes.append(at)
                    seed = parts[-1][0]
                at = numbers.setdefault((at, name, seed), len(numbers))
                nodes.append(at)
            lengths.append(len(nodes) - begun)
        return cls(batch, known, _ints(tree), _ints(nodes), _ints(lengths), several, drawn)

    @property
    def paths(self) -> tuple[Ints, ...]:
        """For each episode the nodes of its stretches, root first."""
        return tuple(np.split(self.nodes, np.cumsum(self.lengths)[:-1]))

    @cached_property
    def leaf(self) -> Ints:
        """(M,) the episode of each stretch."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @cached_property
    def group(self) -> Ints:
        """(E,) the group of each episode."""
        index = {episode.id: number for number, group in enumerate(self.batch.groups) for episode in group.episodes}
        return _ints([index[episode.id] for episode in self.batch.episodes])

    @cached_property
    def rewards(self) -> Floats:
        """(E,) see `whole_rewards`."""
        return whole_rewards(self.batch)

    @cached_property
    def stretches(self) -> Stretches:
        """Those of the trained turns."""
        turns, first = self.batch.turns, self._first
        start = np.zeros(len(self.nodes), dtype=np.int64)
        for (leaf, place), starts in self.cut.items():
            at = first[self._offset[leaf] + place]
            start[at : at + len(starts)] = starts
        turn = np.repeat(self._index, np.diff(first))
        kept = turn >= 0
        turn, start = turn[kept], start[kept]
        end = _ints([len(each.sampled_ids) for each in turns.turn])[turn]
        goes_on = np.flatnonzero(turn[1:] == turn[:-1])
        end[goes_on] = start[goes_on + 1]
        return Stretches(turn, self.nodes[kept], start, end)

    @property
    def node(self) -> Ints:
        """(N,) the nodes of the trained stretches; (T,), one a turn, where no fork begins inside one."""
        return self.stretches.node

    def by_turn(self, values: Floats) -> Floats | list[Floats]:
        """(N,) numbers, as `Credit.advantage` has them: (T,), or by token for each turn if one has several stretches."""
        stretches, turns = self.stretches, self.batch.turns
        if len(stretches.turn) == len(turns):
            return values
        tokens = np.repeat(values, stretches.end - stretches.start)
        ends = np.cumsum([len(turn.sampled_ids) for turn in turns.turn]).tolist()
        return [tokens[end - len(turn.sampled_ids) : end] for turn, end in zip(turns.turn, ends, strict=True)]

    @cached_property
    def trained(self) -> Ints:
        """(T,) how many tokens of each turn are trained if inherited ones are, too (`Credit.inherited`)."""
        tokens = self.batch.turns.length.copy()
        for t, pieces in self._inherited():
            tokens[t] = len(pieces[-1][0].sampled_ids) - _given(pieces)
        return tokens

    def logprobs(self) -> list[FloatArray]:
        """Of each trained turn the log-probs of those who drew its tokens."""
        found = [turn.logprobs for turn in self.batch.turns.turn]
        for t, pieces in self._inherited():
            found[t] = _logprobs(pieces)
        return found

    def _inherited(self) -> Iterator[tuple[int, tuple[_Piece, ...]]]:
        """Each trained turn that inherits, with who drew it."""
        for (leaf, place), pieces in self.drawn.items():
            t = int(self._index[self._offset[leaf] + place])
            if t >= 0 and len(pieces) > 1:
                yield t, pieces

    def prefixes(self) -> tuple[Ints, npt.NDArray[np.bool_]]:
        """(E,) the last node that a fork shares with its parent; (T,) whether a turn is the episode's own, not of the prefix.

        An episode that is no fork or shares nothing has the node -1 - group, its task. Where the parent is not in the group,
        the prefix is the turns that were given, as in a fork of a demonstration.
        """
        node, turns = -1 - self.group, np.zeros(len(self.lengths), dtype=np.int64)
        for leaf, episode in enumerate(self.batch.episodes):
            parent = self.known.get(episode.fork_of or "")
            if episode.fork_of is not None:
                turns[leaf] = kept = shared(episode, parent) if parent is not None else given(episode)
                begin, end = (int(self._first[self._offset[leaf] + at]) for at in (0, kept))
                for start in self.cut.get((leaf, kept), ()):
                    end += start < episode.turns[kept].forced
                if end > begin:
                    node[leaf] = self.nodes[end - 1]
        return node, self._places >= turns[self.batch.turns.episode]

    def first_sight(self) -> npt.NDArray[np.bool_]:
        """(N,) whether a trained stretch is the first of the batch at its node: the others are copies of it in other leaves."""
        node = self.node
        at = np.zeros(int(node.max(initial=-1)) + 1, dtype=np.int64)
        at[node[::-1]] = np.arange(len(node))[::-1]
        return at[node] == np.arange(len(node))

    def metrics(self, advantage: Floats) -> dict[str, float]:
        """Shares: of turns without signal, of stretches that are copies, of forks whose parent is not in their group."""
        forks = [episode.fork_of for episode in self.batch.episodes if episode.fork_of is not None]
        orphans = sum(name not in self.known for name in forks) / max(1, len(forks))
        zero = float(np.mean(advantage == 0.0)) if len(advantage) else 0.0
        copies = 1.0 - float(self.first_sight().mean()) if len(advantage) else 0.0
        return {"credit/zero": zero, "credit/shared": copies, "credit/orphans": orphans}

    @cached_property
    def _offset(self) -> Ints:
        """(E,) the first turn of each episode among all A."""
        return np.cumsum([0, *(len(episode.turns) for episode in self.batch.episodes)])[:-1]

    @cached_property
    def _first(self) -> Ints:
        """(A + 1,) the first stretch of each turn among all M, and M."""
        sizes = np.ones(1 + sum(len(episode.turns) for episode in self.batch.episodes), dtype=np.int64)
        sizes[0] = 0
        for (leaf, place), starts in self.cut.items():
            sizes[1 + self._offset[leaf] + place] = len(starts)
        return np.cumsum(sizes)

    @cached_property
    def _index(self) -> Ints:
        """(A,) which of the trained turns each is; -1 for one that is not trained."""
        index = np.full(len(self._first) - 1, -1)
        index[self._offset[self.batch.turns.episode] + self._places] = np.arange(len(self.batch.turns))
        return index

    @cached_property
    def _places(self) -> Ints:
        """(T,) where in its episode each trained turn stands."""
        turns, episodes = self.batch.turns, self.batch.episodes
        counts = np.bincount(turns.episode, minlength=len(episodes))
        places = np.arange(len(turns)) - np.repeat(np.cumsum(counts) - counts, counts)
        for leaf in np.flatnonzero(counts != [len(episode.turns) for episode in episodes]).tolist():
            by_id = {turn.id: place for place, turn in enumerate(episodes[leaf].turns)}
            for t in np.flatnonzero(turns.episode == leaf).tolist():
                places[t] = by_id[turns.turn[t].id]
        return places


def whole_rewards(batch: Batch) -> Floats:
    """(E,) whole reward of each episode as its trained turns tell it: the sum of theirs, and the outcome."""
    given = np.bincount(batch.turns.episode, batch.turns.reward, minlength=len(batch.episodes))
    return given + np.array([episode.reward for episode in batch.episodes], dtype=np.float64)


def shared(episode: Episode, parent: Episode | None) -> int:
    """With how many of its parent's turns an episode begins."""
    count = 0
    for one, other in zip(episode.turns, parent.turns if parent is not None else (), strict=False):
        if one.seed != other.seed or one.id != other.id:
            break
        count += 1
    return count


def given(episode: Episode) -> int:
    """How many turns an episode begins with of which no token was drawn."""
    return sum(1 for _ in takewhile(lambda turn: 0 < len(turn.sampled_ids) <= turn.forced, episode.turns))


def as_drawn(turn: Turn, episode: Episode, known: Known) -> Turn:
    """A turn of a fork with what it inherited as its ancestors drew it: their log-probs and versions, none of it forced.

    What remains forced was given from outside. A fork whose parent is not known inherits nothing.
    """
    pieces = _pieces(turn, episode, known, {}) if turn.forced else ()
    if len(pieces) < 2:
        return turn
    versions = [
        VersionSpan(span.version, max(span.start, start), min(span.end, end), span.kv)
        for drawn, start, end in _ranges(pieces)
        for span in drawn.versions
        if span.start < end and span.end > start
    ]
    return replace(turn, forced=_given(pieces), logprobs=_logprobs(pieces), versions=tuple(versions))


def _ranges(pieces: Sequence[_Piece]) -> Iterator[tuple[Turn, int, int]]:
    """(who drew them, first token, end) of each piece."""
    ends = [*(start for _, start in pieces[1:]), len(pieces[-1][0].sampled_ids)]
    return ((drawn, start, end) for (drawn, start), end in zip(pieces, ends, strict=True))


def _given(pieces: Sequence[_Piece]) -> int:
    """How many of a turn's tokens nobody drew."""
    return min(pieces[0][0].forced, pieces[1][1])


def _logprobs(pieces: Sequence[_Piece]) -> FloatArray:
    return np.concatenate([drawn.logprobs[start:end] for drawn, start, end in _ranges(pieces)])


def _pieces(turn: Turn, episode: Episode, known: Known, memo: _Memo) -> tuple[_Piece, ...]:
    """Who drew a turn, its first tokens first: the turns of its ancestors with which it begins, and itself."""
    key = episode.id, turn.id
    if key not in memo:
        parent = known.get(episode.fork_of or "")
        of = parent.by_id.get(turn.id) if turn.forced and parent is not None else None
        memo[key] = ((turn, 0),)
        if parent is not None and of is not None and of.seed == turn.seed:  # a copy of the parent's own turn
            memo[key] = _pieces(of, parent, known, memo)
        elif parent is not None and of is not None and _goes_on(turn, episode, of, parent):
            above = _pieces(of, parent, known, memo)
            memo[key] = (*(piece for piece in above if piece[1] < turn.forced), (turn, turn.forced))
    return memo[key]


def _goes_on(turn: Turn, episode: Episode, of: Turn, parent: Episode) -> bool:
    """Whether a turn's forced tokens are what the policy drew in the parent's turn `of`, in the same place and way."""

    def way(each: Turn) -> tuple[object, ...]:
        return each.policy, each.sampling.temperature, each.logprobs_at, each.parent, each.untrained

    if parent.source != episode.source or way(turn) != way(of) or not np.array_equal(turn.context_ids, of.context_ids):
        return False
    before = turn.parent.turn if turn.parent is not None else None
    if before is not None and episode.by_id[before].seed != parent.by_id[before].seed:
        return False
    return np.array_equal(turn.sampled_ids[: turn.forced], of.sampled_ids[: turn.forced])


def _cuts(
    episodes: Sequence[Episode], tree: Sequence[int], known: Known
) -> tuple[dict[_Place, tuple[_Piece, ...]], dict[int, _Split]]:
    """The turns that inherit, with their pieces; and by tree, id and seed the places inside turns where a leaf goes on anew."""
    found: dict[_Place, tuple[_Piece, ...]] = {}
    cuts: dict[int, dict[tuple[str, int], set[int]]] = {}
    memo: _Memo = {}
    for leaf, episode in enumerate(episodes):
        for place, turn in enumerate(episode.turns if episode.fork_of is not None else ()):
            if turn.forced:
                found[leaf, place] = pieces = _pieces(turn, episode, known, memo)
                for (drawn, _), (_, start) in pairwise(pieces):
                    cuts.setdefault(tree[leaf], {}).setdefault((turn.id, drawn.seed), set()).add(start)
    whole = {
        number: {key: [(key[1], start) for start in sorted({0, *starts})] for key, starts in inside.items()}
        for number, inside in cuts.items()
    }
    return found, whole


def _parts(pieces: Sequence[_Piece], split: _Split) -> list[tuple[int, int]]:
    """The stretches of a turn: its pieces, cut where a leaf goes on anew inside them."""
    found: list[tuple[int, int]] = []
    for drawn, start, end in _ranges(pieces):
        inside = split.get((drawn.id, drawn.seed), ())
        found += [(drawn.seed, start), *(part for part in inside if start < part[1] < end)]
    return found


def _root(episode: Episode, known: Known) -> str:
    """The episode that the line of forks began with, as far as the batch knows it."""
    name, above = episode.id, episode.fork_of
    while above is not None:
        name, above = above, known[above].fork_of if above in known else None
    return name


def _ints(values: Sequence[int]) -> Ints:
    return np.array(values, dtype=np.int64)
