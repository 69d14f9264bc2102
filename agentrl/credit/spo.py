"""SPO: the advantage of a segment is what it adds to the value, which Monte Carlo tells instead of a critic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np

from agentrl.credit.batch import MASKED
from agentrl.credit.contract import Batch, Credit, Floats, Needs, TurnColumns
from agentrl.credit.statistics import normalise
from agentrl.credit.tree import Forest, shared
from agentrl.episode import Episode


@dataclass(frozen=True, slots=True)
class SPOTree:
    """A(turn) = V(node) - V(parent), V(node) the mean of its children's, V(leaf) the reward (arXiv 2505.23564).

    The mean is over children, not over the leaves below, as in the authors' code. `std="population"` divides by the deviation
    of the siblings (their "grpo"; None is "rloo"). Each turn is trained once, in the first leaf that holds it, and not at all
    if its advantage is 0. Tokens that the policy gave a probability of at least `certain` get 0; they still count as tokens.
    Segments are turns here; the authors cut every 600 tokens.
    """

    std: Literal["population"] | None = None
    certain: float = 0.9
    eps: float = 1e-8
    needs: ClassVar[Needs] = Needs(group=2, forks=True)

    def __call__(self, batch: Batch) -> Credit:
        """The advantage of each drawn token."""
        turns = batch.turns
        if not len(turns):
            return Credit(turns, np.zeros(0))
        forest = Forest.of(batch)
        edge = self._edges(forest)
        advantage = np.array([edge[node] for node in forest.node.tolist()])
        masked = batch.extras[MASKED] if MASKED in batch.extras else np.zeros(len(turns), np.bool_)
        seen, once = set[int](), np.zeros(len(turns))
        for t, node in enumerate(forest.node.tolist()):
            if node not in seen and not masked[t]:
                seen.add(node)
                once[t] = 1.0
        weight = np.where(advantage == 0.0, 0.0, once)
        metrics = {"credit/zero": float(np.mean(advantage == 0.0)), "credit/shared": float(1.0 - once.mean())}
        return Credit(turns, uncertain(turns, advantage.tolist(), self.certain), weight=weight, metrics=metrics)

    def _edges(self, forest: Forest) -> dict[int, float]:
        """The advantage of each node's turn; a task's root is -1 - its group."""
        children: dict[int, dict[int, None]] = {}
        rewards: dict[int, list[float]] = {}
        for group, path, reward in zip(forest.group.tolist(), forest.paths, forest.rewards.tolist(), strict=True):
            above = -1 - group
            for node in path.tolist():
                children.setdefault(above, {})[node] = None
                above = node
            rewards.setdefault(above, []).append(reward)
        values: dict[int, float] = {}
        for node in sorted({*children, *rewards}, reverse=True):  # a child has a greater number than its parent
            below = [values[child] for child in children.get(node, ())] + rewards.get(node, [])
            values[node] = _mean(below)
        edges: dict[int, float] = {}
        for below in children.values():
            siblings = np.array([values[child] for child in below])
            centred = normalise(siblings, by=(np.zeros(len(siblings), np.int64),), std=self.std, eps=self.eps)
            edges.update(zip(below, centred.tolist(), strict=True))
        return edges


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
        turns, rewards = batch.turns, Forest.of(batch).rewards.tolist()
        known = {episode.id: episode for group in batch.groups for episode in group.episodes}
        found: dict[str, dict[tuple[str, int], list[float]]] = {}
        for episode, reward in zip(batch.episodes, rewards, strict=True):
            parent = known.get(episode.fork_of or "")
            first = shared(episode, parent)
            if parent is not None and first < len(episode.turns):
                turn = episode.turns[first]
                found.setdefault(parent.id, {}).setdefault((turn.id, turn.forced), []).append(reward)
        chains: list[dict[str, Floats]] = []
        for episode, reward in zip(batch.episodes, rewards, strict=True):
            cuts = found.get(episode.id, {}) if episode.fork_of is None else {}
            chains.append(_segments(episode, {place: _mean(values) for place, values in cuts.items()}, reward))
        leaves = turns.episode.tolist()
        token = [
            chains[leaf][turn.id][turn.forced :] if chains[leaf] else 0.0 for leaf, turn in zip(leaves, turns.turn, strict=True)
        ]
        weight = np.array([bool(chains[leaf]) for leaf in leaves], dtype=np.float64)
        return Credit(turns, uncertain(turns, token, self.certain), weight=weight)


def _segments(episode: Episode, values: Mapping[tuple[str, int], float], reward: float) -> dict[str, Floats]:
    """The advantage of each sampled token by turn; nothing for an episode without cuts."""
    starts = np.cumsum([0, *(len(turn.sampled_ids) for turn in episode.turns)]).tolist()
    start = {turn.id: at for turn, at in zip(episode.turns, starts[:-1], strict=True)}
    cuts = sorted((start[turn] + kept, value) for (turn, kept), value in values.items() if turn in start)
    advantage = np.zeros(starts[-1])
    for (at, value), (end, following) in pairwise([*cuts, (starts[-1], reward)]):
        advantage[at:end] = following - value
    return {
        turn.id: advantage[at : at + len(turn.sampled_ids)] for turn, at in zip(episode.turns, starts, strict=False) if cuts
    }


def uncertain(turns: TurnColumns, advantage: Sequence[float | Floats], certain: float) -> Sequence[Floats]:
    """The advantage of each turn on those of its drawn tokens that had a probability below `certain`, 0 on the others."""
    limit = np.log(certain) if certain > 0 else -np.inf
    drawn = [turn.logprobs[turn.forced :] for turn in turns.turn]
    return [np.where(logprobs < limit, value, 0.0) for value, logprobs in zip(advantage, drawn, strict=True)]


def _mean(values: Sequence[float]) -> float:
    """Exact for equal values."""
    return values[0] if len(set(values)) == 1 else float(np.mean(values))
