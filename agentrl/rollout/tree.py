"""Random expansion: trees of rollouts that branch wherever a turn begins."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from agentrl.effect import derive_seed
from agentrl.engines.contract import Offers
from agentrl.episode import FINISHED, Episode, Turn
from agentrl.errors import UserError
from agentrl.rollout.contract import GroupRun


@dataclass(frozen=True, slots=True)
class RandomTree:
    """`trees` whole rollouts; then, `rounds` times, `expand` places of each tree, from which it goes on to the end anew.

    Places are drawn uniformly, with replacement, among the root and all turns that are no leaf. Sampling of Tree-GRPO
    (arXiv 2509.21240) as in its scripts, which keep all of the 1 + expand * rounds leaves of a tree. A tree whose rollouts are
    all lost begins anew.
    """

    trees: int = 2
    expand: int = 2
    rounds: int = 1
    forks: ClassVar[bool] = True
    whole: ClassVar[bool] = True
    exact: ClassVar[bool] = True
    columns: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name in ("trees", "expand", "rounds"):
            if getattr(self, name) < 1:
                raise UserError(f"RandomTree: {name} must be >= 1, got {getattr(self, name)}")

    @property
    def leaves(self) -> int:
        """Episodes of a tree."""
        return 1 + self.expand * self.rounds

    @property
    def size(self) -> int:
        return self.trees * self.leaves

    def needs(self, offers: Offers) -> str:
        return ""

    async def __call__(self, run: GroupRun) -> tuple[Episode, ...]:
        async with asyncio.TaskGroup() as tasks:
            trees = [
                tasks.create_task(self._tree(run, number * self.leaves), name=f"tree-{number}") for number in range(self.trees)
            ]
        return tuple(leaf for tree in trees for leaf in tree.result())

    async def _tree(self, run: GroupRun, member: int) -> list[Episode]:
        tree = [await run.run(member)]
        random = Random(derive_seed(tree[0].seed, "expand"))
        for _ in range(self.rounds):
            places = branch_points(tree)
            begun = member + len(tree)
            drawn = [random.choice(places) if places else None for _ in range(self.expand)]
            async with asyncio.TaskGroup() as tasks:
                grown = [
                    tasks.create_task(branch(run, begun + n, *place) if place else run.run(begun + n), name=f"leaf-{begun + n}")
                    for n, place in enumerate(drawn)
                ]
            tree.extend(leaf.result() for leaf in grown)
        return tree


async def branch(run: GroupRun, member: int, of: Episode, turn: Turn) -> Episode:
    """A fork that draws `turn` of `of` anew."""
    return await run.fork(member, of, await run.cut_before(of, turn))


def branch_points(tree: Sequence[Episode]) -> list[tuple[Episode, Turn]]:
    """Each place of a tree at which a fork can begin, once: the root, and behind every turn that another follows.

    A place is told by an episode that went on from it and the turn that it drew there. Lost episodes have none.
    """
    places: dict[tuple[str, int] | None, tuple[Episode, Turn]] = {}
    for episode in tree:
        if episode.status in FINISHED:
            behind: tuple[str, int] | None = None
            for turn in episode.turns:
                places.setdefault(behind, (episode, turn))
                behind = (turn.id, turn.seed)
    return list(places.values())
