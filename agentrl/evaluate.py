"""Running an experiment without learning: evaluation, a few rollouts, replay and fork of stored episodes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrl.edit import Edit, Sheet
from agentrl.effect import Effect
from agentrl.engines.specs import own_renderer
from agentrl.episode import Episode, Group
from agentrl.errors import UserError, unwrapped
from agentrl.experiment import Experiment
from agentrl.meter import success_of
from agentrl.run import Run
from agentrl.runtime.policies import models_of, open_renderer
from agentrl.runtime.runtime import Runtime
from agentrl.store.contract import EpisodeFilter
from agentrl.workflow import task_from_json


@dataclass(frozen=True, slots=True)
class EvalResult:
    """Success (mean reward) over the finished episodes; lost ones are in no mean."""

    success: float
    episodes: int
    lost: int
    turns: float
    tool_calls: float
    groups: tuple[Group, ...]


async def evaluate(
    experiment: Experiment[Any, Any],
    *,
    policies: str | Path | None = None,
    tasks: Sequence[Any] | None = None,
    greedy: bool = True,
) -> EvalResult:
    """One episode of each held-out task (or of `tasks`)."""
    chosen = experiment.held_out[: experiment.eval_tasks] if tasks is None else tasks
    if not len(chosen):
        raise UserError("there are no tasks to evaluate on: Experiment(..., held_out=...)")
    with unwrapped():
        async with Runtime(experiment, policies=policies) as runtime:
            episodes = await _run_all(runtime, chosen, "eval", greedy=greedy)
    groups = tuple(Group(e.group, e.task, (e,), 1) for e in episodes)
    numbers = success_of(groups)
    return EvalResult(
        numbers["success"], int(numbers["episodes"]), int(numbers["lost"]), numbers["turns"], numbers["tool_calls"], groups
    )


async def held_out(runtime: Runtime[Any, Any], batch: int) -> list[Group]:
    """The held-out tasks, one greedy episode each."""
    experiment = runtime.experiment
    tasks = experiment.held_out[: experiment.eval_tasks]
    async with asyncio.TaskGroup() as running:
        episodes = [
            running.create_task(runtime.run(task, group=f"e{batch:06d}.{index:04d}", split="eval", step=batch, greedy=True))
            for index, task in enumerate(tasks)
        ]
    return [Group(e.result().group, task, (e.result(),), 1) for task, e in zip(tasks, episodes, strict=True)]


async def rollout(
    experiment: Experiment[Any, Any],
    count: int,
    *,
    policies: str | Path | None = None,
    tasks: Sequence[Any] | None = None,
    out: str | Path | None = None,
) -> list[Episode]:
    """`count` sampled episodes of the first tasks (held-out ones if there are any); with `out` they are stored there."""
    from agentrl.store.sqlite import SQLiteStore

    known: Any = tasks or experiment.held_out or experiment.tasks
    if not isinstance(known, Sequence) or not len(known):
        raise UserError("there are no tasks to run: Experiment(..., held_out=...), or give one with --task JSON")
    chosen = [known[index % len(known)] for index in range(count)]
    with unwrapped():
        async with AsyncExitStack() as stack:
            store = None
            if out is not None:
                store = stack.enter_context(SQLiteStore(make_folder(out) / "store.db"))
            runtime = Runtime(experiment, store=store, policies=policies)
            async with runtime:
                episodes = await _run_all(runtime, chosen, "rollout", greedy=False)
            if store is not None:
                await store.flush()
            return episodes


def make_folder(path: str | Path) -> Path:
    """The folder, made if need be."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


async def _run_all(runtime: Runtime[Any, Any], tasks: Sequence[Any], split: str, *, greedy: bool) -> list[Episode]:
    async with asyncio.TaskGroup() as running:
        episodes = [
            running.create_task(runtime.run(task, group=f"{split}.{index:06d}", split=split, greedy=greedy))
            for index, task in enumerate(tasks)
        ]
    return [episode.result() for episode in episodes]


@dataclass(frozen=True, slots=True)
class Replayed:
    """A stored episode and what its record gave when it was run again; `differences` is empty when they are the same."""

    stored: Episode
    again: Episode
    differences: tuple[str, ...]


async def replay(experiment: Experiment[Any, Any], run: str | Path, episode: str) -> Replayed:
    """Runs a stored episode again from its record alone: no engine, no model weights."""
    from agentrl.engines.recorded import Recorded

    folder = Run.find(Path(run))
    with unwrapped(), folder.store(read_only=True) as store:
        stored = store.episode(episode)
        head = next(iter(store.heads(EpisodeFilter(ids=(episode,)))))
        task = task_from_json(experiment.workflow, head.task)
        engine = Recorded(max_context=folder.max_context)
        async with Runtime(experiment, engine=engine, lineage=folder.lineage) as runtime:
            again = await runtime.replay(head, store.journal(episode), store.tail(episode), task)
    return Replayed(stored, again, tuple(differences(stored, again)))


async def fork(
    experiment: Experiment[Any, Any], run: str | Path, episode: str, after_turn: int, *, edit: Edit | None = None
) -> Episode:
    """Goes on live from a stored episode, after its first `after_turn` turns; the fork is stored in the run.

    `edit` (of `open_sheet(...).edit(document)`) changes what it goes on from; the stored episode stays as it is.
    """
    folder = Run.find(Path(run))
    with unwrapped(), folder.store() as store:
        stored = store.episode(episode)
        cut = edit.cut if edit is not None else cut_after(store.journal(episode), stored, after_turn)
        task = task_from_json(experiment.workflow, stored.task)
        group = f"{stored.group}+fork"
        member = sum(1 for _ in store.heads(EpisodeFilter(group=group)))
        async with Runtime(experiment, store=store, policies=run, lineage=folder.lineage) as runtime:
            own = edit.effects if edit is not None else ()
            return await runtime.fork(task, stored, cut, group=group, member=member, edited=own)


def open_sheet(experiment: Experiment[Any, Any], run: str | Path, episode: str, after_turn: int) -> Sheet:
    """What may be changed of a stored episode that is forked after its first `after_turn` turns."""
    folder = Run.find(Path(run))
    with folder.store(read_only=True) as store:
        stored, journal = store.episode(episode), store.journal(episode)
    cut = cut_after(journal, stored, after_turn)
    policy = stored.turns[after_turn - 1].policy if after_turn else next(iter(experiment.served))
    if policy not in experiment.served:
        raise UserError(f"{episode} was sampled by policy {policy!r}; the experiment has {', '.join(experiment.served)}")
    own = own_renderer(experiment.engine, policy)
    renderer = own or open_renderer(experiment.served[policy], models_of(experiment, run)[policy])
    agents = experiment.workflow.agents
    return Sheet(stored, journal, after_turn, cut, renderer, agents)


def cut_after(journal: Sequence[Effect], episode: Episode, turns: int) -> int:
    """The cut at which the first `turns` turns have completed and the next one has not been asked for."""
    if not 0 <= turns <= len(episode.turns):
        raise UserError(f"{episode.id} has {len(episode.turns)} turns, got --fork {turns}")
    if turns == len(episode.turns):
        return max((effect.completed for effect in journal), default=-1) + 1
    following = episode.turns[turns].id
    return next(effect.issued for effect in journal if effect.turn is not None and effect.turn.id == following)


def differences(one: Episode, other: Episode) -> list[str]:
    """In what two runs of one episode differ; tokens and log-probs to the bit."""
    found: list[str] = []
    for name in ("status", "output", "rewards", "stops", "failure"):
        if getattr(one, name) != getattr(other, name):
            found.append(f"{name}: {getattr(one, name)!r} and {getattr(other, name)!r}")
    if len(one.turns) != len(other.turns):
        return [*found, f"turns: {len(one.turns)} and {len(other.turns)}"]
    for first, second in zip(one.turns, other.turns, strict=True):
        same = first.id == second.id and first.digest == second.digest and first.text == second.text
        if not same or first.logprobs.tobytes() != second.logprobs.tobytes():
            found.append(f"turn {first.id}")
    return found
