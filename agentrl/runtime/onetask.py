"""What a rollout plan may do with one task: the calls of `GroupRun`, as episodes of one group of a runtime."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Generic

from agentrl.effect import EffectKey, derive_seed
from agentrl.episode import Episode, Turn
from agentrl.workflow import TaskT

if TYPE_CHECKING:
    from agentrl.runtime.line import Line, ReadLine
    from agentrl.runtime.runtime import Runtime


class OneTask(Generic[TaskT]):
    """What a rollout plan may do with one task."""

    def __init__(self, runtime: Runtime[TaskT, Any], task: TaskT, group: str, wanted: int, split: str, step: int) -> None:
        self._runtime = runtime
        self._task = task
        self._group = group
        self._wanted = wanted
        self._split = split
        self._step = step

    async def run(self, member: int) -> Episode:
        return await self._runtime.run(
            self._task, group=self._group, member=member, wanted=self._wanted, split=self._split, step=self._step
        )

    async def fork(
        self, member: int, of: Episode, cut: int, forced: Mapping[EffectKey, tuple[int, ...]] | None = None
    ) -> Episode:
        return await self._runtime.fork(
            self._task, of, cut, group=self._group, member=member, forced=forced,
            wanted=self._wanted, split=self._split, step=self._step,
        )  # fmt: skip

    def line(
        self, member: int, of: Episode | None = None, cut: int = 0, forced: Mapping[EffectKey, tuple[int, ...]] | None = None
    ) -> AbstractAsyncContextManager[Line | ReadLine]:
        return self._runtime.line(
            self._task, of=of, cut=cut, group=self._group, member=member, forced=forced,
            wanted=self._wanted, split=self._split, step=self._step,
        )  # fmt: skip

    def decode(self, turn: Turn, tokens: int) -> str:
        return self._runtime.renderers[turn.policy].decode(turn.sampled_ids[:tokens])

    async def reference(self, member: int, refresh: int = 0) -> Episode:
        return await self._runtime.reference(
            self._task, group=self._group, member=member, refresh=refresh,
            wanted=self._wanted, split=self._split, step=self._step,
        )  # fmt: skip

    async def demonstration(self, episodes: str, least: float | None = None) -> Episode | None:
        return await self._runtime.demonstration(self._task, episodes, seed=self.seed, least=least)

    async def cut_before(self, of: Episode, turn: Turn) -> int:
        return await self._runtime.cut_before(of, turn)

    @property
    def vocab_size(self) -> int:
        return self._runtime.engine.info.vocab_size

    @property
    def seed(self) -> int:
        return derive_seed(self._runtime.experiment.seed, self._group)

    @property
    def trained(self) -> Collection[str]:
        return {name for name, policy in self._runtime.experiment.by_name.items() if not policy.frozen}
