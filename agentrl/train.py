"""The loop: tasks -> episodes -> groups -> credit -> rows -> a learner step -> new weights -> the next episodes.

One pipeline, two tasks that meet in `Admission`:

    sample   puts groups in flight, as many as could still be trained; what has ended waits there
    learn    takes a batch of groups that have ended; its step lets `sample` go on

`max_staleness=0` is synchronous training; above it episodes go on while weights change, and a batch is whatever has ended first
and is not too old. A supervised warm start is the same loop with demonstrations as engine and NLL as objective. A batch is
committed to the store, with the version of the weights it meets, before the learner steps on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agentrl import faults
from agentrl.admission import Admission, staleness, versions
from agentrl.credit.values import CRITIC
from agentrl.episode import Group
from agentrl.errors import unwrapped
from agentrl.evaluate import held_out
from agentrl.experiment import Experiment
from agentrl.learning.contract import Learner, StepStats
from agentrl.meter import Meter, refuse_hopeless
from agentrl.metrics import Sink
from agentrl.prepare import prepare
from agentrl.publish import Publisher
from agentrl.run import Run, restore
from agentrl.runtime.runtime import Runtime
from agentrl.setup import check, open_learners, open_sinks, open_source, placed, rarer_collections


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training came to."""

    run: Path
    batches: int
    policies: Mapping[str, Path]
    """The last checkpoint of each trained policy."""
    held_out: tuple[tuple[int, float], ...]
    """(batch, success) of every evaluation of this call."""
    stopped: bool


async def train(
    experiment: Experiment[Any, Any],
    *,
    out: str | Path,
    sinks: Sequence[Sink | str] | None = None,
    stop: asyncio.Event | None = None,
    fresh: bool = False,
    target: str = "",
    settings: Sequence[str] = (),
) -> TrainResult:
    """Trains until `experiment.steps` batches are learned, or `stop` is set; called again, goes on where it was.

    `sinks`, as such or by name; None = a table on the terminal, metrics.jsonl and TensorBoard in the run. Raises `UserError`
    for what cannot run (before the first token), `RunLocked` if another process trains in `out`.
    """
    check(experiment)
    run = Run.create(Path(out), experiment, target=target, settings=settings, fresh=fresh)
    stop = stop or asyncio.Event()
    with unwrapped():
        async with AsyncExitStack() as stack:
            stack.enter_context(rarer_collections())
            store = stack.enter_context(run.store())
            learners = open_learners(experiment, run.lineage)
            batch, state = await asyncio.to_thread(restore, run, store, learners)
            admission = Admission.of(experiment, open_source(experiment), batch, state)
            opened = stack.enter_context(open_sinks(experiment, run.folder, sinks))
            meter = stack.enter_context(Meter(experiment, opened, batch))
            runtime = await stack.enter_async_context(Runtime(placed(experiment, run.folder), store=store, lineage=run.lineage))
            run.note_engine(runtime.engine.info)
            training = Training(run, runtime, learners, admission, meter, stop)
            await training.run()
            await store.flush()
            keep = experiment.keep_checkpoints
            saved = {name: run.save(name, learner, training.batch, keep) for name, learner in learners.items()}
            saved = {name: folder for name, folder in saved.items() if name != CRITIC}
            return TrainResult(run.folder, training.batch, saved, tuple(meter.held_out), stop.is_set())


class Training:
    """The two tasks and what they share."""

    def __init__(
        self, run: Run, runtime: Runtime[Any, Any], learners: Mapping[str, Learner], admission: Admission[Any], meter: Meter,
        stop: asyncio.Event,
    ) -> None:  # fmt: skip
        self.experiment, self.folder, self.runtime, self.learners = runtime.experiment, run, runtime, learners
        self.admission, self.meter, self.stop = admission, meter, stop
        self.batch = admission.taken
        """Batches learned from so far."""
        served = {name: learner for name, learner in learners.items() if name != CRITIC}
        self.publisher = Publisher(runtime.experiment, runtime.engine, served, self.batch, run.folder / "published")
        # told of every group that ends, by `learn` of every batch, and when `stop` is set
        self._moved = asyncio.Condition()

    async def run(self) -> None:
        """Both tasks, until all batches are learned or `stop` is set; then what is being sampled is suspended."""
        await self.publisher.publish(self.batch)
        if self.experiment.eval_every and self.batch % self.experiment.eval_every == 0:
            await self.evaluate()
        async with asyncio.TaskGroup() as tasks:
            others = [tasks.create_task(self.sample(), name="sample"), tasks.create_task(self.end_on_stop(), name="stop")]
            await self.learn()
            for task in others:
                task.cancel()

    async def end_on_stop(self) -> None:
        """Wakes `learn` for the last time."""
        await self.stop.wait()
        async with self._moved:
            self._moved.notify_all()

    async def sample(self) -> None:
        """Puts groups in flight in the order of their tasks."""
        async with asyncio.TaskGroup() as running:
            while True:
                async with self._moved:
                    await self._moved.wait_for(lambda: self.admission.may_begin(self.publisher.served))
                number, task = self.admission.begin()
                running.create_task(self.group(number, task))

    async def group(self, number: int, task: Any) -> None:
        """One group from its task to where it may be admitted."""
        block, index = divmod(number, self.experiment.tasks_per_step)
        group = await self.runtime.group(task, f"s{block:06d}.{index:03d}", step=self.batch)
        async with self._moved:
            self.admission.put(number, group, versions(self.learners))
            self._moved.notify_all()

    async def learn(self) -> None:
        """A learner step for every batch, evaluation and checkpoints between them."""
        experiment = self.experiment
        while self.batch < experiment.steps:
            with self.meter.time("rollout"):
                async with self._moved:
                    await self._moved.wait_for(lambda: self.stop.is_set() or self.admission.ready)
            if self.stop.is_set():
                return
            groups = self.admission.take()
            refuse_hopeless(groups)
            stats = await self.step(groups)
            async with self._moved:
                self.batch += 1
                self.admission.refuse(versions(self.learners))
                self._moved.notify_all()
            if self.evaluates_at(self.batch):
                await self.evaluate()
            if experiment.checkpoint_every and self.batch % experiment.checkpoint_every == 0:
                with self.meter.time("store"):
                    for name, learner in self.learners.items():
                        await asyncio.to_thread(self.folder.save, name, learner, self.batch, experiment.keep_checkpoints)
            self.meter.step(self.batch, groups, stats, refused=self.admission.refused)

    def evaluates_at(self, batch: int) -> bool:
        every = self.experiment.eval_every
        return bool(every) and (batch % every == 0 or batch == self.experiment.steps)

    async def step(self, groups: Sequence[Group]) -> dict[str, StepStats]:
        """Credit, rows, commit, one step of every policy and of the critic, new weights."""
        experiment, stats = self.experiment, dict[str, StepStats]()
        with self.meter.time("credit"):
            prepared = await asyncio.to_thread(prepare, experiment, groups, self.learners)
            rows = prepared.rows
        self.runtime.stored.commit_step(*prepared.stored(self.batch, self.learners, self.admission.state()))
        with self.meter.time("store"):
            await self.runtime.stored.flush()
        faults.point("learn.begun")
        with self.meter.time("learn"):
            async with self.publisher.room():
                for name, learner in self.learners.items():
                    if rows[name]:
                        lag = staleness(rows[name], learner.version) if name != CRITIC else {}
                        done = await asyncio.to_thread(learner.step, rows[name])
                        stats[name] = replace(done, metrics={**done.metrics, **lag})
        faults.point("learn.done")
        if self.publisher.is_due(self.batch + 1) or self.evaluates_at(self.batch + 1):
            with self.meter.time("publish"):
                await self.publisher.publish(self.batch + 1)
        faults.point("publish.done")
        return stats

    async def evaluate(self) -> None:
        """Success on held-out tasks with the weights as they are now."""
        if self.experiment.held_out:
            with self.meter.time("evaluate"):
                groups = await held_out(self.runtime, self.batch)
            refuse_hopeless(groups)
            self.meter.evaluated(self.batch, groups)
