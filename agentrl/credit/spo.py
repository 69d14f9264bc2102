"""SPO: the advantage of a segment is what it adds to the value, which Monte Carlo tells instead of a critic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import ClassVar, Literal

import numpy as np

from agentrl.credit.batch import MASKED
from agentrl.credit.contract import Batch, Bools, Credit, Floats, Ints, Needs
from agentrl.credit.statistics import normalise
from agentrl.credit.tree import Forest, shared, whole_rewards
from agentrl.episode import Episode


@dataclass(frozen=True, slots=True)
class SPOTree:
    """A(segment) = V(node) - V(parent), V(node) the mean of its children's, V(leaf) the reward (arXiv 2505.23564).

    Its plan is `agentrl.rollout.FixedTree`; a segment is a turn, or a stretch of one between places where rollouts branch.
    The mean is over children, not over the leaves below, as in the authors' code. `std="population"` divides by the deviation
    of the siblings (their "grpo"; None is "rloo"). Each segment is trained once, in the first leaf that holds it, and not at
    all if its advantage is 0. Tokens that the policy gave a probability of at least `certain` are not in the loss.
    """

    std: Literal["population"] | None = None
    certain: float = 0.9
    eps: float = 1e-8
    needs: ClassVar[Needs] = Needs(group=2, forks=True)

    def __call__(self, batch: Batch) -> Credit:
        """The advantage of each turn, or of each of its tokens where leaves branch inside it; a mask of what is trained."""
        turns, forest = batch.turns, Forest.of(batch)
        if not len(turns):
            return Credit(turns, np.zeros(0))
        stretches = forest.stretches
        advantage = self._edges(forest)[stretches.node]
        may = np.ones(len(turns), np.bool_) if MASKED not in batch.extras else ~batch.extras[MASKED]
        learned = np.flatnonzero(may[stretches.turn])
        once = np.zeros(len(advantage), np.bool_)
        once[learned[np.unique(stretches.node[learned], return_index=True)[1]]] = True
        once &= advantage != 0.0
        mask = self._mask(forest, once)
        weight = np.zeros(len(turns))
        weight[stretches.turn[once]] = 1.0
        metrics = forest.metrics(advantage)
        return Credit(turns, forest.by_turn(advantage), weight=weight, mask=mask, inherited=True, metrics=metrics)

    def _edges(self, forest: Forest) -> Floats:
        """The advantage of each node."""
        nodes, lengths, leaves = forest.nodes, forest.lengths, np.arange(len(forest.lengths))
        count = int(nodes.max(initial=-1)) + 1
        begins = np.cumsum(lengths) - lengths
        before = np.roll(nodes, 1)
        before[begins[lengths > 0]] = count + forest.group[lengths > 0]  # a task's root stands behind all nodes
        last = np.where(lengths > 0, nodes[begins + lengths - 1], count + forest.group)
        # A node's children are the nodes that go on from it and the leaves that end there: numbered behind the tasks.
        tasks = int(forest.group.max(initial=-1)) + 1
        above, level = np.empty(count, np.int64), np.empty(count, np.int64)
        above[nodes], level[nodes] = before, np.arange(len(nodes)) - np.repeat(begins, lengths)
        value = np.concatenate((np.zeros(count + tasks), forest.rewards))
        child = np.concatenate((np.arange(count), count + tasks + leaves))
        parent, depth = np.concatenate((above, last)), np.concatenate((level, lengths))
        for at in np.split(np.argsort(depth, kind="stable"), np.cumsum(np.bincount(depth))[:-1])[::-1]:
            _set_means(value, value[child[at]], parent[at])
        return normalise(value[:count], by=(above,), std=self.std, eps=self.eps)

    def _mask(self, forest: Forest, once: Bools) -> list[Bools]:
        """Of each turn the sampled tokens that are trained: in a stretch that is, and uncertain."""
        logprobs, stretches = forest.logprobs(), forest.stretches
        nothing = np.zeros(int(stretches.end.max()), np.bool_)
        mask = [nothing[: len(each)] for each in logprobs]
        some = np.unique(stretches.turn[once]).tolist()
        if some:
            of = np.isin(stretches.turn, some)
            trained = np.repeat(once[of], (stretches.end - stretches.start)[of])
            trained &= np.concatenate([logprobs[t] for t in some]) < _limit(self.certain)
            ends = accumulate((len(logprobs[t]) for t in some), initial=0)
            for t, (start, end) in zip(some, pairwise(ends), strict=True):
                mask[t] = trained[start:end]
        return mask


def _set_means(target: Floats, values: Floats, key: Ints) -> None:
    """Sets target[k] to the mean of the values of key k; exact for equal ones, and the same in any order."""
    order = np.lexsort((values, key))
    values, key = values[order], key[order]
    starts = np.flatnonzero(np.diff(key, prepend=-1))
    size = np.diff(starts, append=len(key))
    least, most = values[starts], values[starts + size - 1]
    target[key[starts]] = np.where(least == most, least, np.add.reduceat(values, starts) / size)


@dataclass(frozen=True, slots=True)
class SPOChain:
    """A(segment) = V(its end) - V(its start), V(cut) the mean reward of the forks that went on from it (arXiv 2505.23564).

    The plan is `agentrl.rollout.MonteCarlo`; forks of an episode at the beginning of a turn, such as `RandomTree`'s, are
    continuations as well. V at the end is the reward. Tokens before the first cut get 0, as in the authors' code, and so do
    those that the policy gave a probability of at least `certain`. Continuations are not trained; a cut whose continuations are
    all lost is none, and an episode without any is not trained.
    """

    certain: float = 0.9
    needs: ClassVar[Needs] = Needs(group=2, forks=True)

    def __call__(self, batch: Batch) -> Credit:
        """The advantage of each drawn token; weight 0 for continuations."""
        turns, rewards = batch.turns, whole_rewards(batch).tolist()
        known = {episode.id: episode for group in batch.groups for episode in group.episodes}
        found: dict[str, dict[tuple[str, int], list[float]]] = {}
        for episode, reward in zip(batch.episodes, rewards, strict=True):
            parent = known.get(episode.fork_of or "")
            first = shared(episode, parent)
            if parent is not None and first < len(episode.turns):
                turn = episode.turns[first]
                found.setdefault(parent.id, {}).setdefault((turn.id, turn.forced), []).append(reward)
        chains: dict[int, dict[str, Floats]] = {}
        for leaf, (episode, reward) in enumerate(zip(batch.episodes, rewards, strict=True)):
            if episode.fork_of is None and episode.id in found:
                values = {at: _mean(values) for at, values in found[episode.id].items()}
                chains[leaf] = _segments(episode, values, reward, _limit(self.certain))
        advantage: list[Floats] = [np.zeros(())] * len(turns)
        weight = np.zeros(len(turns))
        for leaf, segments in chains.items():
            first, end = np.searchsorted(turns.episode, (leaf, leaf + 1)).tolist()
            for t in range(first, end if segments else first):
                turn = turns.turn[t]
                advantage[t] = segments[turn.id][turn.forced :]
                weight[t] = 1.0
        return Credit(turns, advantage, weight=weight)


def _segments(episode: Episode, values: Mapping[tuple[str, int], float], reward: float, limit: float) -> dict[str, Floats]:
    """The advantage of each sampled token by turn, 0 from a log-prob of `limit`; nothing for an episode without cuts."""
    starts = np.cumsum([0, *(len(turn.sampled_ids) for turn in episode.turns)]).tolist()
    start = {turn.id: at for turn, at in zip(episode.turns, starts[:-1], strict=True)}
    cuts = sorted((start[turn] + kept, value) for (turn, kept), value in values.items() if turn in start)
    advantage = np.zeros(starts[-1])
    for (at, value), (end, following) in pairwise([*cuts, (starts[-1], reward)]):
        advantage[at:end] = following - value
    advantage[~(np.concatenate([turn.logprobs for turn in episode.turns]) < limit)] = 0.0
    return {
        turn.id: advantage[at : at + len(turn.sampled_ids)] for turn, at in zip(episode.turns, starts, strict=False) if cuts
    }


def _limit(certain: float) -> float:
    """The log-prob from which a token is certain; for a probability of 0 none is trained."""
    return float(np.log(certain)) if certain > 0 else -np.inf


def _mean(values: Sequence[float]) -> float:
    """Exact for equal values."""
    return values[0] if len(set(values)) == 1 else float(np.mean(values))
