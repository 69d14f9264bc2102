"""The loop: tasks -> episodes -> groups -> credit -> rows -> a learner step -> new weights -> the next episodes.

One pipeline, two tasks joined by one queue:

    sample   takes tasks, runs their groups, fills `ready`; waits while it is `max_staleness` batches ahead of the learner
    learn    drains `ready`; its step opens the gate for `sample`

`max_staleness=0` is synchronous training; a supervised warm start is the same loop with demonstrations as engine and NLL as
objective. A batch is committed to the store, with the version of the weights it meets, before the learner steps on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrl import faults
from agentrl.credit.assign import assign
from agentrl.episode import Group
from agentrl.errors import unwrapped
from agentrl.evaluate import held_out
from agentrl.experiment import Experiment
from agentrl.learning.contract import Learner, StepStats
from agentrl.learning.replay import to_stored
from agentrl.learning.rows import to_rows
from agentrl.meter import Meter
from agentrl.metrics import Sink
from agentrl.run import Run, restore
from agentrl.runtime.runtime import Runtime
from agentrl.setup import check, open_learners, open_sinks, open_source, rarer_collections
from agentrl.store.contract import StoredStep
from agentrl.tasks.contract import TaskSource


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
            source = open_source(experiment)
            batch, state = await asyncio.to_thread(restore, run, store, learners)
            if state is not None:
                source.load(state)
            opened = stack.enter_context(open_sinks(experiment, run.folder, sinks))
            meter = stack.enter_context(Meter(experiment, opened, batch))
            runtime = await stack.enter_async_context(Runtime(experiment, store=store, lineage=run.lineage))
            run.note_engine(runtime.engine.info)
            await publish(runtime, learners)
            training = Training(run, runtime, learners, source, meter, stop, batch)
            await training.run()
            await store.flush()
            keep = experiment.keep_checkpoints
            saved = {name: run.save(name, learner, training.batch, keep) for name, learner in learners.items()}
            return TrainResult(run.folder, training.batch, saved, tuple(meter.held_out), stop.is_set())


class Training:
    """The two tasks and what they share."""

    def __init__(
        self, run: Run, runtime: Runtime[Any, Any], learners: Mapping[str, Learner], source: TaskSource[Any], meter: Meter,
        stop: asyncio.Event, batch: int,
    ) -> None:  # fmt: skip
        self.experiment, self.folder, self.runtime, self.learners = runtime.experiment, run, runtime, learners
        self.source, self.meter, self.stop = source, meter, stop
        self.batch = batch
        """Batches learned from so far."""
        self._learned = asyncio.Condition()
        self._before: dict[int, Any] = {}
        """The task source's state before it gave batch n, for those that have been taken."""
        # filled by `sample` (and, with None, by `end_on_stop`), drained by `learn`; the gate holds `sample` back
        self._ready: asyncio.Queue[list[Group] | None] = asyncio.Queue()

    async def run(self) -> None:
        """Both tasks, until all batches are learned or `stop` is set; then what is being sampled is suspended."""
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
        await self._ready.put(None)

    async def sample(self) -> None:
        """Groups by batch, in task order."""
        experiment = self.experiment
        for number in range(self.batch, experiment.steps):
            async with self._learned:
                await self._learned.wait_for(lambda number=number: self.batch >= number - experiment.max_staleness)
            self._before[number] = self.source.state()
            tasks = self.source.take(experiment.tasks_per_step)
            with self.meter.time("rollout"):
                async with asyncio.TaskGroup() as running:
                    groups = [
                        running.create_task(self.runtime.group(task, f"s{number:06d}.{index:03d}", step=number))
                        for index, task in enumerate(tasks)
                    ]
            await self._ready.put([group.result() for group in groups])

    async def learn(self) -> None:
        """A learner step for every batch, evaluation and checkpoints between them."""
        experiment = self.experiment
        while self.batch < experiment.steps and not self.stop.is_set():
            groups = await self._ready.get()
            if groups is None:
                return
            stats = await self.step(groups)
            self.source.update(groups)
            async with self._learned:
                self.batch += 1
                self._learned.notify_all()
            if experiment.eval_every and (self.batch % experiment.eval_every == 0 or self.batch == experiment.steps):
                await self.evaluate()
            if experiment.checkpoint_every and self.batch % experiment.checkpoint_every == 0:
                with self.meter.time("store"):
                    for name, learner in self.learners.items():
                        await asyncio.to_thread(self.folder.save, name, learner, self.batch, experiment.keep_checkpoints)
            self.meter.step(self.batch, groups, stats)

    async def step(self, groups: Sequence[Group]) -> dict[str, StepStats]:
        """Credit, rows, commit, one step of every policy, new weights."""
        experiment = self.experiment
        with self.meter.time("credit"):
            batch, credit = assign(groups, experiment.credit, experiment.transforms, min_group=experiment.min_group)
            rows = {name: to_rows(batch, credit, name) for name in self.learners}
        state = self._before[self.batch + 1] if self.batch + 1 in self._before else self.source.state()
        for name, learner in self.learners.items():
            self.runtime.stored.commit_step(
                StoredStep(name, self.batch, to_stored(rows[name]), learner.version, dict(credit.metrics), state)
            )
        with self.meter.time("store"):
            await self.runtime.stored.flush()
        faults.point("learn.begun")
        stats: dict[str, StepStats] = {}
        with self.meter.time("learn"):
            for name, learner in self.learners.items():
                if rows[name]:
                    stats[name] = await asyncio.to_thread(learner.step, rows[name])
        faults.point("learn.done")
        with self.meter.time("publish"):
            await publish(self.runtime, self.learners)
        faults.point("publish.done")
        return stats

    async def evaluate(self) -> None:
        """Success on held-out tasks with the weights as they are now."""
        if self.experiment.held_out:
            with self.meter.time("evaluate"):
                groups = await held_out(self.runtime, self.batch)
            self.meter.evaluated(self.batch, groups)


async def publish(runtime: Runtime[Any, Any], learners: Mapping[str, Learner]) -> None:
    """Serves every policy with its learner's weights."""
    for name, learner in learners.items():
        faults.point("publish.begun")
        await runtime.engine.publish(name, learner.weights(), learner.version)
