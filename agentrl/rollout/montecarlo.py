"""Monte Carlo values: chains, and what becomes of them from places inside."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import ClassVar

from agentrl.engines.contract import Offers
from agentrl.episode import FINISHED, Episode, Turn
from agentrl.errors import UserError
from agentrl.rollout.contract import GroupRun, kept_of


@dataclass(frozen=True, slots=True)
class MonteCarlo:
    """`chains` rollouts; each is cut at `cuts` places, from each of which it goes on anew `continuations` times.

    Sampling of SPO-chain (arXiv 2505.23564). A cut stands one token before one that the policy gave a probability below
    `certain`, as in the authors' code; they cut at every fifth of these, here `cuts` are spread over them, so that a group has
    one size. A chain with fewer of them has more continuations for each; one without any is cut where it begins.
    """

    chains: int = 2
    cuts: int = 4
    continuations: int = 9
    certain: float = 0.9
    forks: ClassVar[bool] = True
    whole: ClassVar[bool] = True
    exact: ClassVar[bool] = True
    columns: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name in ("chains", "cuts", "continuations"):
            if getattr(self, name) < 1:
                raise UserError(f"MonteCarlo: {name} must be >= 1, got {getattr(self, name)}")
        if not 0 < self.certain <= 1:
            raise UserError(f"MonteCarlo: certain is a probability above 0, got {self.certain}")

    @property
    def size(self) -> int:
        return self.chains * (1 + self.cuts * self.continuations)

    def needs(self, offers: Offers) -> str:
        return lacks_forced_prefix(offers)

    async def __call__(self, run: GroupRun) -> tuple[Episode, ...]:
        async with asyncio.TaskGroup() as tasks:
            each = self.size // self.chains
            chains = [tasks.create_task(self._chain(run, n * each), name=f"chain-{n}") for n in range(self.chains)]
        return tuple(episode for chain in chains for episode in chain.result())

    async def _chain(self, run: GroupRun, member: int) -> list[Episode]:
        chain = await run.run(member)
        if chain.status not in FINISHED or not chain.turns:
            return [chain]
        places = islice(cycle(self.places(chain)), self.cuts * self.continuations)
        async with asyncio.TaskGroup() as tasks:
            grown = [
                tasks.create_task(go_on(run, member + n, chain, *place), name=f"continuation-{member + n}")
                for n, place in enumerate(places, 1)
            ]
        return [chain, *(leaf.result() for leaf in grown)]

    def places(self, chain: Episode) -> Sequence[tuple[Turn, int]]:
        """(turn, how many of its tokens are kept) of each cut, in the order of the chain."""
        limit = math.log(self.certain)
        found = [
            (turn, max(at - 1, turn.forced))
            for turn in chain.turns
            if turn.trainable
            for at in range(turn.forced, len(turn.sampled_ids))
            if turn.logprobs[at] < limit
        ] or [(chain.turns[0], chain.turns[0].forced)]
        chosen = {
            (turn.id, kept): (turn, kept) for turn, kept in (found[n * len(found) // self.cuts] for n in range(self.cuts))
        }
        return list(chosen.values())


def lacks_forced_prefix(offers: Offers) -> str:
    """`RolloutPlan.needs` of a plan that goes on from inside a turn."""
    if offers.forced_prefix:
        return ""
    return "it goes on from inside a turn, and the engine takes no forced prefix; --set rollout=random_tree, or engine=local"


async def go_on(run: GroupRun, member: int, of: Episode, turn: Turn, kept: int) -> Episode:
    """A fork that draws `turn` anew behind its first `kept` tokens."""
    return await run.fork(member, of, await run.cut_before(of, turn), kept_of(turn, kept))
