"""The runtime: executes workflows. Training, evaluation, serving and replay all use this one.

    async with Runtime(experiment, store=store) as runtime:
        episode = await runtime.run(task, deadline=60)
        group = await runtime.group(task, "g7")

An episode that the store already holds is not run again: a finished one is read, an unfinished one resumed. A task that is
cancelled from outside suspends its episodes; `runtime.cancel` ends one for good.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic

from agentrl.effect import Effect, EffectKey, derive_seed
from agentrl.engines.contract import Engine
from agentrl.engines.specs import own_renderer
from agentrl.episode import FINISHED, Episode, Group, Reward, Source, Turn
from agentrl.errors import UserError
from agentrl.experiment import Experiment
from agentrl.probes.contract import Gauge
from agentrl.rendering.contract import Renderer
from agentrl.runtime.cast import Cast
from agentrl.runtime.demonstrations import SPLIT, Demonstration, Demonstrations
from agentrl.runtime.execution import Execution, Surroundings
from agentrl.runtime.line import Line, ReadLine
from agentrl.runtime.onetask import OneTask
from agentrl.runtime.policies import models_of, open_renderer
from agentrl.runtime.probing import probe
from agentrl.runtime.record import EDITED
from agentrl.runtime.references import OneAtATime, References, check_tokenizers, copy_of
from agentrl.runtime.sandboxes import Sandboxes
from agentrl.runtime.scope import EffectTasks
from agentrl.runtime.threads import DaemonThreads
from agentrl.runtime.turnstile import Turnstile
from agentrl.store.contract import EpisodeHead, EpisodeTail, Store
from agentrl.store.fold import fold
from agentrl.workflow import OutputT, TaskT, task_as_json


class Runtime(Generic[TaskT, OutputT]):
    """See the module. Entered once; its methods may be called from any task of that loop."""

    def __init__(
        self,
        experiment: Experiment[TaskT, OutputT],
        *,
        store: Store | None = None,
        engine: Engine | None = None,
        renderers: Mapping[str, Renderer] | None = None,
        policies: str | Path | None = None,
        lineage: str = "run",
    ) -> None:
        self.experiment = experiment
        self.store = store
        self.lineage = lineage
        self._given_engine = engine
        self._given_renderers = renderers
        self._policies = policies
        self._live: dict[str, Execution] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Runtime[TaskT, OutputT]:
        experiment = self.experiment
        models = models_of(experiment, self._policies)
        self.renderers = dict(self._given_renderers or {}) or {
            name: own_renderer(experiment.engine, name) or open_renderer(policy, models[name])
            for name, policy in experiment.served.items()
        }
        if self._plays_reference:
            check_tokenizers(experiment, self.renderers)
        engine = self._given_engine
        if engine is None:
            engine = experiment.engine.open(models, self.renderers, self.lineage)
            await self._stack.enter_async_context(engine)
        self.engine: Engine = engine
        lacking = experiment.rollout.needs(engine.info.offers)
        if lacking:
            raise UserError(f"the rollout plan {type(experiment.rollout).__name__} cannot run here: {lacking}")
        gauges = [each for each in experiment.probes if isinstance(each, Gauge)]
        if len(gauges) < len(experiment.probes) and not engine.info.offers.scoring:
            raise UserError(f"probes={experiment.probes!r:.80} need log-probs of given ids, and this engine scores none")
        wanted = {type(each).__name__: each.columns for each in (*gauges, experiment.rollout)}
        wanted[type(experiment.credit).__name__] = ("entropy",) if experiment.credit.needs.entropy else ()
        for name, columns in wanted.items():
            if absent := sorted({*columns} - engine.info.offers.columns):
                raise UserError(f"{name} needs {', '.join(absent)} of every token, which this engine does not give")
        asked = tuple({column for columns in wanted.values() for column in columns})
        self._threads = DaemonThreads()
        self._stack.callback(self._threads.close)
        tasks = await self._stack.enter_async_context(EffectTasks(experiment.limits.grace))
        self._around = Surroundings(tasks, Turnstile(), self._threads, experiment.limits, self.store)
        self._room = asyncio.Semaphore(experiment.limits.concurrency)
        self._sandboxes = await self._open_sandboxes()
        self._cast = Cast(
            experiment, engine, self.renderers, asked, self._threads, self._sandboxes, reference=self._plays_reference
        )
        self._known = {head.id: head for head in self.store.heads()} if self.store is not None else {}
        self._references = References(self._known.values())
        self._demonstrations: dict[str, Demonstrations] = {}
        self._alone = OneAtATime()
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await self._stack.__aexit__(*exc)

    async def _open_sandboxes(self) -> Sandboxes:
        spec = self.experiment.sandbox
        backend = None if spec is None else await self._stack.enter_async_context(spec.open())
        plan = self.experiment.rollout
        if backend is not None and plan.forks and backend.fork == "none":
            what = f"{type(plan).__name__} branches, and a sandbox of {type(spec).__name__} cannot go on twice"
            raise UserError(f"{what}; --set rollout=independent, or another sandbox")
        return Sandboxes(spec, backend)

    @property
    def stored(self) -> Store:
        """The store; `UserError` if the runtime has none."""
        if self.store is None:
            raise UserError("this needs a store: Runtime(experiment, store=...)")
        return self.store

    # --- running -----------------------------------------------------------------------------------------------------------
    async def run(
        self,
        task: TaskT,
        *,
        group: str = "",
        member: int = 0,
        wanted: int = 1,
        split: str = "serve",
        step: int = 0,
        deadline: float | None = None,
        greedy: bool = False,
        source: Source | None = None,
    ) -> Episode:
        """One episode of the workflow, to its end. It never raises for what happens inside: see `status` and `failure`."""
        group = group or f"{split}-{time.time_ns():x}"
        head = self._head(task, group, member, wanted, split, step, source)
        return await self._resumed_or_new(head, task, deadline=deadline, greedy=greedy)

    async def group(self, task: TaskT, group: str, *, split: str = "train", step: int = 0) -> Group:
        """The episodes of one task by the experiment's rollout plan. Lost members are in it with their status."""
        plan = self.experiment.rollout
        wanted = plan.size if plan.exact else 1
        episodes = await plan(OneTask(self, task, group, wanted, split, step))
        return Group(group, task, episodes, wanted)

    async def replay(self, head: EpisodeHead, record: Sequence[Effect], tail: EpisodeTail | None, task: TaskT) -> Episode:
        """Runs a stored episode again from its record alone; its status is "divergent" if the code asks for something else."""
        strict = tail is not None and tail.status in FINISHED
        around = replace(self._around, log=None)
        program = self._cast.program(task, head, greedy=head.split == "eval")
        execution = Execution(head, tuple(record), program, around, mode="replay", strict=strict)
        await execution.run()
        assert execution.episode is not None
        return execution.episode

    def cancel(self, episode: str, reason: str = "cancelled") -> None:
        """Ends a live episode for good; `UserError` if none of this id is live."""
        if episode not in self._live:
            raise UserError(f"no live episode {episode!r}; live are {len(self._live)}")
        self._live[episode].cancel(reason)

    async def reward(self, episode: str, value: float, *, name: str = "feedback") -> None:
        """Adds a reward to a stored episode, long after its end too: production becomes training data."""
        self.stored.reward(episode, Reward(name, value))
        await self.stored.flush()

    def waiting(self) -> Mapping[str, int]:
        """What the live episodes wait for: effects in flight by kind."""
        return Counter(kind for execution in self._live.values() for kind in execution.journal.in_flight())

    @property
    def _plays_reference(self) -> bool:
        reference = self.experiment.reference
        return reference is not None and reference.name in self.renderers

    # --- inside ------------------------------------------------------------------------------------------------------------
    def _head(
        self, task: TaskT, group: str, member: int, wanted: int, split: str, step: int, source: Source | None
    ) -> EpisodeHead:
        name = f"{group}.{member}"
        return EpisodeHead(
            id=name,
            group=group,
            member=member,
            wanted=wanted,
            task=task_as_json(task),
            seed=derive_seed(self.experiment.seed, name),
            workflow=self.experiment.workflow.code_hash,
            source=source or self.experiment.engine.source,
            split=split,
            step=step,
            created=time.time(),
        )

    async def _resumed_or_new(self, head: EpisodeHead, task: TaskT, *, deadline: float | None, greedy: bool) -> Episode:
        if self.store is None or head.id not in self._known:
            return await self._execute(head, (), task, deadline=deadline, greedy=greedy)
        if self.store.tail(head.id) is not None:
            return replace(self.store.episode(head.id), task=task)
        head, record = self._known[head.id], self.store.journal(head.id)
        if head.split == EDITED and not any(effect.name == EDITED for effect in record):
            raise UserError(
                f"episode {head.id} was cut off before its edit was stored, so it cannot go on; fork and edit again"
            )
        return await self._execute(head, record, task, deadline=deadline, greedy=greedy)

    async def _execute(
        self,
        head: EpisodeHead,
        record: tuple[Effect, ...],
        task: TaskT,
        *,
        deadline: float | None,
        greedy: bool,
        begins_with: Sequence[Effect] = (),
        line: Line | None = None,
        shown: Demonstration | None = None,
    ) -> Episode:
        """A led fork needs no room of its own: the one that it was forked from may wait for it."""
        async with self._room if line is None or not head.fork_of else nullcontext():
            if self.store is not None:
                self.store.begin(head)
                if begins_with:
                    self.store.append(head.id, begins_with)
            program = self._cast.program(task, head, greedy=greedy, shown=shown)
            execution = Execution(head, record, program, self._around, deadline=deadline, gate=line)
            if line is not None:
                line.led_by(execution)
            self._live[head.id] = execution
            try:
                effects, tail = await execution.run()
                episode = execution.episode
                assert episode is not None
                probed = not greedy and shown is None and head.source != "reference"
                if self.experiment.probes and probed and episode.status in FINISHED:
                    episode, tail = await self._probed(head, effects, tail, episode)
            finally:
                del self._live[head.id]
                await self._sandboxes.close(head.id)
            if self.store is not None:
                self.store.finish(head.id, tail)
            return episode

    async def _probed(
        self, head: EpisodeHead, effects: tuple[Effect, ...], tail: EpisodeTail, episode: Episode
    ) -> tuple[Episode, EpisodeTail]:
        """The episode with what its probes found, and the tail that counts what they cost."""
        first = max(max(effect.issued, effect.completed) for effect in effects) + 1
        found = await probe(episode, episode.task, self.experiment.probes, self.engine, self.renderers, first)
        if self.store is not None:
            self.store.append(head.id, found)
        episode = fold(head, (*effects, *found), tail, task=episode.task)
        return episode, replace(tail, ledger=episode.ledger)

    async def fork(
        self,
        task: TaskT,
        of: Episode,
        cut: int,
        *,
        group: str,
        member: int,
        forced: Mapping[EffectKey, tuple[int, ...]] | None = None,
        edited: Sequence[Effect] = (),
        wanted: int = 1,
        split: str = "fork",
        step: int = 0,
    ) -> Episode:
        """An episode that shares with a stored one every effect completed before `cut`, and goes on by itself.

        `forced` gives token ids with which the next model call of that key begins. `edited` are effects of the fork's own that
        stand behind the shared ones (`agentrl.edit`). Every seed after the cut differs.
        """
        source = of.source if of.source == "reference" else None
        head = self._head(task, group, member, wanted, EDITED if edited else split, step, source)
        if head.id in self._known:
            return await self._resumed_or_new(head, task, deadline=None, greedy=False)
        head, record = await self._forked(head, of, cut, forced)
        return await self._execute(head, (*record, *edited), task, deadline=None, greedy=False, begins_with=edited)

    async def _forked(
        self, head: EpisodeHead, of: Episode, cut: int, forced: Mapping[EffectKey, tuple[int, ...]] | None
    ) -> tuple[EpisodeHead, tuple[Effect, ...]]:
        """The head of a fork, and what it shares."""
        await self.stored.flush()
        record = tuple(effect for effect in self.stored.journal(of.id) if 0 <= effect.completed < cut)
        begun = {str(key): tokens for key, tokens in (forced or {}).items()}
        return replace(head, fork_of=of.id, fork_cut=cut, fork_forced=begun), record

    @asynccontextmanager
    async def line(
        self,
        task: TaskT,
        *,
        group: str,
        member: int,
        of: Episode | None = None,
        cut: int = 0,
        forced: Mapping[EffectKey, tuple[int, ...]] | None = None,
        wanted: int = 1,
        split: str = "fork",
        step: int = 0,
    ) -> AsyncGenerator[Line | ReadLine]:
        """As `run`, or with `of` as `fork`, of an episode that is led (`agentrl.runtime.line`).

        One that has not ended when this is left is suspended.
        """
        head, record = self._head(task, group, member, wanted, split, step, None), ()
        if head.id in self._known:
            head, record = self._known[head.id], self.stored.journal(head.id)
            if self.stored.tail(head.id) is not None:
                yield ReadLine(replace(self.stored.episode(head.id), task=task), record, head)
                return
        elif of is not None:
            head, record = await self._forked(head, of, cut, forced)
        line = Line(head, task)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(self._execute(head, record, task, deadline=None, greedy=False, line=line), name=head.id)
            line.begin(running)
            try:
                yield line
            finally:
                running.cancel()

    async def cut_before(self, of: Episode, turn: Turn) -> int:
        """The cut that leaves a fork of a stored episode all that had completed when `turn` was asked for."""
        await self.stored.flush()
        made = (effect for effect in self.stored.journal(of.id) if effect.turn is not None and effect.status != "lost")
        return next(effect.issued for effect in made if effect.turn is not None and effect.turn.id == turn.id)

    async def reference(
        self, task: TaskT, *, group: str, member: int, refresh: int = 0, wanted: int = 1, split: str = "train", step: int = 0
    ) -> Episode:
        """An episode of the reference policy, or a copy of the one that measured the task (`GroupRun.reference`)."""
        if not self._plays_reference:
            raise UserError("no reference policy is served here; --set reference=on --set reference.model=FOLDER")
        head = self._head(task, group, member, wanted, split, step, "reference")
        async with self._alone(References.key(head)):
            if self.store is not None and head.id not in self._known:
                await self.store.flush()
                measured = self._references.find(head, refresh, self.store)
                if measured is not None:
                    return replace(copy_of(self.store, head, measured), task=task)
            episode = await self._resumed_or_new(head, task, deadline=None, greedy=False)
            self._references.add(head)
            return episode

    async def demonstration(self, task: TaskT, episodes: str, *, seed: int, least: float | None = None) -> Episode | None:
        """One of the task's demonstrations as an episode of this store (`GroupRun.demonstration`)."""
        async with self._alone(episodes):
            if episodes not in self._demonstrations:
                self._demonstrations[episodes] = await asyncio.to_thread(Demonstrations, episodes)
        known = self._demonstrations[episodes]
        shown = known.draw(task_as_json(task), least, seed)
        if shown is None:
            return None
        head = self._head(task, shown.name(self.experiment.workflow.code_hash), 0, 1, SPLIT, 0, "demonstration")
        async with self._alone(head.id):
            await self.stored.flush()
            led = self.stored.episode(head.id) if head.id in self._known else None
            if led is None or led.status == "running":
                record = self.stored.journal(head.id) if led is not None else ()
                head = self._known[head.id] = replace(head, seed=shown.episode.seed)
                led = await self._execute(head, record, task, deadline=None, greedy=False, shown=shown.behind(record))
            return led if known.usable(shown, led) else None
