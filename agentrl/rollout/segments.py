"""Trees by segments: rollouts that branch every so many tokens, inside turns as well.

A path is all that was sampled for an episode, one turn behind the other: what tools answered is not counted. A branch goes on
from the end of a segment, with the tokens before it forced. The papers grow all paths by one segment at a time; here a path
runs to its end, and its branches begin when it has. That draws the same trees: whether a path branches depends on what stands
before the place alone, and what comes behind is drawn independently in each branch.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar, TypeAlias

import numpy as np

from agentrl.effect import derive_seed
from agentrl.engines.contract import Offers
from agentrl.episode import FINISHED, Episode, Turn
from agentrl.errors import UserError
from agentrl.rollout.contract import GroupRun
from agentrl.rollout.montecarlo import go_on, lacks_forced_prefix

Place: TypeAlias = tuple[Episode, Turn, int]
"""Where a branch begins: in an episode, in a turn of it, behind so many of the turn's tokens."""


@dataclass(frozen=True, slots=True)
class SegmentTree:
    """`size` leaves from paths that branch every `segment` tokens, at most `depth` segments deep.

    Sampling of TreePO (arXiv 2508.17445). It begins with `first` rollouts, a number drawn from this range. At the end of each
    segment the paths that go on become `divergence` times as many, or as many as there is room for, spread evenly (the first
    of them have one more). A path that has ended does not branch, nor does one that repeats itself: of whose last segment's
    n-grams (`ngram` tokens) less than the share `distinct` are distinct. Room that is left is for branches from the beginnings
    of segments of finished paths, drawn uniformly; without any, for fresh rollouts.

    Unlike in the authors' code, a path that repeats itself still runs to its end, an ended path's budget is not given to the
    others before the end, and branches are not weighed by log-prob.
    """

    size: int = 16
    segment: int = 512
    depth: int = 14
    divergence: int = 2
    first: tuple[int, int] = (2, 8)
    ngram: int = 8
    distinct: float = 0.5
    forks: ClassVar[bool] = True
    whole: ClassVar[bool] = True
    exact: ClassVar[bool] = True
    columns: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name in ("size", "segment", "depth", "divergence", "ngram"):
            if getattr(self, name) < 1:
                raise UserError(f"SegmentTree: {name} must be >= 1, got {getattr(self, name)}")
        if len(self.first) != 2 or not 1 <= self.first[0] <= self.first[1]:
            raise UserError(f"SegmentTree: first is a range such as (2, 8), or (4, 4) for always 4, got {self.first}")
        if not 0 <= self.distinct <= 1:
            raise UserError(f"SegmentTree: distinct is a share from 0 (off) to 1, got {self.distinct}")

    def needs(self, offers: Offers) -> str:
        return lacks_forced_prefix(offers)

    async def __call__(self, run: GroupRun) -> tuple[Episode, ...]:
        leaves = await _roots(run, 0, min(self.first[0], self.size))
        random = Random(derive_seed(leaves[0].seed, "segments"))
        leaves += await _roots(run, len(leaves), min(random.randint(*self.first), self.size) - len(leaves))
        for depth in range(1, self.depth):
            active = [
                (leaf, *found)
                for leaf in leaves
                if (found := place(leaf, depth * self.segment)) and not self.repeats(leaf, depth * self.segment)
            ]
            leaves += await _branches(run, len(leaves), self.spread(active, self.size - len(leaves)))
        fallen = self._fallback(leaves, random)
        leaves += await _branches(run, len(leaves), fallen)
        leaves += await _roots(run, len(leaves), self.size - len(leaves))
        return tuple(leaves)

    def spread(self, active: Sequence[Place], room: int) -> list[Place]:
        """Where the branches of one depth begin: `active` is one place for each path that goes on, which is no branch."""
        branches = min(room, (self.divergence - 1) * len(active))
        each, more = divmod(branches, max(1, len(active)))
        return [here for number, here in enumerate(active) for _ in range(each + (number < more))]

    def repeats(self, episode: Episode, tokens: int) -> bool:
        """Whether the path of the first `tokens` sampled ones repeats itself in its last segment."""
        path = np.concatenate([turn.sampled_ids for turn in episode.turns])[max(0, tokens - self.segment) : tokens]
        if len(path) < self.ngram:
            return False
        grams = np.lib.stride_tricks.sliding_window_view(path, self.ngram)
        return len(np.unique(grams, axis=0)) < self.distinct * len(grams)

    def _fallback(self, leaves: Sequence[Episode], random: Random) -> list[Place]:
        """For each branch that is lacking the beginning of a segment of a finished path."""
        ends = [
            [(leaf, *found) for depth in range(self.depth) if (found := place(leaf, depth * self.segment))] for leaf in leaves
        ]
        paths = [places for places in ends if places]
        return [random.choice(random.choice(paths)) for _ in range(self.size - len(leaves))] if paths else []


@dataclass(frozen=True, slots=True)
class FixedTree:
    """A tree of one shape: `branching[0]` rollouts; behind its d-th `segment` of tokens a path goes on as `branching[d]`.

    Sampling of SPO-tree (arXiv 2505.23564); behind the last branching a path runs to its end. A path that ends sooner stays the
    leaf that it is, so that a group may have fewer than `size`.
    """

    branching: tuple[int, ...] = (6, 6, 6)
    segment: int = 600
    forks: ClassVar[bool] = True
    whole: ClassVar[bool] = True
    exact: ClassVar[bool] = False
    columns: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if not self.branching or min(self.branching) < 1:
            raise UserError(f"FixedTree: branching is a number >= 1 for each depth, such as (6, 6, 6), got {self.branching}")
        if self.segment < 1:
            raise UserError(f"FixedTree: segment must be >= 1, got {self.segment}")

    @property
    def size(self) -> int:
        return math.prod(self.branching)

    def needs(self, offers: Offers) -> str:
        return lacks_forced_prefix(offers)

    async def __call__(self, run: GroupRun) -> tuple[Episode, ...]:
        leaves = await _roots(run, 0, self.branching[0])
        for depth, width in enumerate(self.branching[1:], 1):
            active = [(leaf, *found) for leaf in leaves if (found := place(leaf, depth * self.segment))]
            leaves += await _branches(run, len(leaves), [here for here in active for _ in range(width - 1)])
        return tuple(leaves)


def place(episode: Episode, tokens: int) -> tuple[Turn, int] | None:
    """The turn that holds the token behind the first `tokens` of the path, and how many of those are its own.

    None where the path has no such token, or the episode is lost.
    """
    for turn in episode.turns if episode.status in FINISHED else ():
        if tokens < len(turn.sampled_ids):
            return turn, tokens
        tokens -= len(turn.sampled_ids)
    return None


async def _roots(run: GroupRun, member: int, count: int) -> list[Episode]:
    async with asyncio.TaskGroup() as tasks:
        begun = [tasks.create_task(run.run(member + n), name=f"root-{member + n}") for n in range(count)]
    return [episode.result() for episode in begun]


async def _branches(run: GroupRun, member: int, places: Sequence[Place]) -> list[Episode]:
    async with asyncio.TaskGroup() as tasks:
        begun = [tasks.create_task(go_on(run, member + n, *here), name=f"branch-{member + n}") for n, here in enumerate(places)]
    return [episode.result() for episode in begun]
