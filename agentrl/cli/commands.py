"""The commands. Each imports what it needs when it runs; each gives its exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.errors import AgentRLError, UserError, capture, describe

if TYPE_CHECKING:
    import asyncio

    from agentrl.episode import IntArray
    from agentrl.experiment import Experiment
    from agentrl.metrics import Console, Sink
    from agentrl.run import Run
    from agentrl.train import TrainResult


def train(arguments: argparse.Namespace) -> int:
    """Trains; at the end the change in held-out success, a curve and where the weights are."""
    from agentrl.cli.signals import interruptible
    from agentrl.metrics import JSONL, Console, TensorBoard
    from agentrl.train import train as run_training

    settings = ([f"credit={arguments.credit}"] if arguments.credit else []) + arguments.settings
    experiment = open_experiment(arguments.target, settings)
    out: Path = arguments.out
    console = Console(sys.stdout, steps=experiment.steps)
    sinks: list[Sink] = [JSONL(out / "metrics.jsonl"), console]
    if arguments.tensorboard:
        sinks.append(TensorBoard(out / "tensorboard"))
    _log_to(console)

    def work(stop: asyncio.Event) -> Coroutine[Any, Any, TrainResult]:
        return run_training(
            experiment,
            out=out,
            sinks=sinks,
            stop=stop,
            fresh=arguments.fresh,
            target=_settled(arguments.target),
            settings=settings,
        )

    try:
        code, result = interruptible(work, console.note)
    finally:
        for sink in sinks:
            sink.close()
    if result is not None:
        _conclude(out, experiment, result)
    return code


def _conclude(out: Path, experiment: Experiment[Any, Any], result: TrainResult) -> None:
    """What a person wants to know at the end."""
    import importlib.util

    from agentrl.metrics import before_after_table, draw_curve, read_metrics

    if result.stopped and result.batches < experiment.steps:
        print(f"stopped after batch {result.batches} of {experiment.steps}; the same command goes on from there")
    steps = read_metrics(out / "metrics.jsonl") if (out / "metrics.jsonl").is_file() else ()
    series = {
        name: [(step.step, step.values[metric]) for step in steps if metric in step.values]
        for name, metric in (("held-out success", "held_out/success"), ("sampled reward", "reward/mean"))
    }
    evaluated = series["held-out success"]
    if len(evaluated) > 1:
        print(before_after_table({"held-out success": evaluated[0][1]}, {"held-out success": evaluated[-1][1]}))
    if any(series.values()) and importlib.util.find_spec("matplotlib") is not None:
        shown = {name: points for name, points in series.items() if points}
        draw_curve(shown, out / "curve.png", x="batch", y="mean reward", title=experiment.workflow.name)
        print(f"curve: {out / 'curve.png'}")
    for name, folder in result.policies.items():
        print(f"policy {name}: {folder}")


def evaluate(arguments: argparse.Namespace) -> int:
    """Prints success on the held-out tasks; fails if no episode came to an end."""
    import asyncio

    from agentrl.evaluate import evaluate as run_evaluation

    experiment = open_experiment(arguments.target, arguments.settings)
    result = asyncio.run(run_evaluation(experiment, policies=arguments.policies))
    lost = f", {result.lost} lost" if result.lost else ""
    print(f"success {result.success:.3f} over {result.episodes} episodes{lost}")
    print(f"{result.turns:.2f} turns and {result.tool_calls:.2f} tool calls an episode")
    if not result.episodes:
        print(f"agentrl: no episode came to an end ({result.lost} lost); `agentrl rollout` shows why", file=sys.stderr)
        return 1
    return 0


def rollout(arguments: argparse.Namespace) -> int:
    """Prints a few episodes as trees."""
    import asyncio

    from agentrl.evaluate import rollout as run_rollout

    if arguments.count < 1:
        raise UserError(f"-n must be at least 1, got {arguments.count}")
    experiment = open_experiment(arguments.target, arguments.settings)
    tasks = None if arguments.task is None else [_task(experiment, arguments.task)]
    episodes = asyncio.run(
        run_rollout(experiment, arguments.count, policies=arguments.policies, tasks=tasks, out=arguments.out)
    )
    for episode in episodes:
        _print_tree(episode, arguments)
    return 0


def replay(arguments: argparse.Namespace) -> int:
    """Replays an episode, or goes on live from one of its turns; fails if a replay differs from the record."""
    import asyncio

    from agentrl.evaluate import fork
    from agentrl.evaluate import replay as run_replay
    from agentrl.run import Run

    run = Run.find(arguments.folder)
    experiment = _experiment_of(run, arguments.target, arguments.settings)
    if arguments.fork is not None:
        _print_tree(asyncio.run(fork(experiment, run.folder, arguments.episode, arguments.fork)), arguments)
        return 0
    replayed = asyncio.run(run_replay(experiment, run.folder, arguments.episode))
    _print_tree(replayed.again, arguments)
    if replayed.differences:
        print(f"agentrl: the replay differs from the record: {'; '.join(replayed.differences)}", file=sys.stderr)
        return 1
    print("the replay is equal to the record")
    return 0


def view(arguments: argparse.Namespace) -> int:
    """Prints a run's episodes as a list, or one as a tree."""
    from agentrl.store.contract import EpisodeFilter
    from agentrl.store.sqlite import SQLiteStore
    from agentrl.view import render_list

    folder: Path = arguments.folder
    with SQLiteStore(folder if folder.is_file() else folder / "store.db", read_only=True) as store:
        if arguments.episode is not None:
            _print_tree(store.episode(arguments.episode), arguments, _decoder(folder) if arguments.context else None)
            return 0
        status = (arguments.status,) if arguments.status else None
        heads = list(store.heads(EpisodeFilter(split=arguments.split, step=arguments.step, status=status)))
        shown = heads[-max(1, arguments.count) :]
        print(render_list((head.split, head.step, store.episode(head.id)) for head in shown))
        if len(shown) < len(heads):
            print(f"the last {len(shown)} of {len(heads)}; -n {len(heads)} shows all")
    return 0


def doctor(arguments: argparse.Namespace) -> int:
    """Prints what was found; fails if there is a problem."""
    from agentrl.doctor import diagnose

    report = diagnose(arguments.model, run=arguments.folder)
    print(report)
    return 0 if report.ok else 1


# --- what commands share -----------------------------------------------------------------------------------------------------
def open_experiment(target: str, settings: Sequence[str] = ()) -> Experiment[Any, Any]:
    """The experiment that a target names, with the settings in it. `UserError` for anything else."""
    from agentrl.config import apply_settings
    from agentrl.experiment import Experiment
    from agentrl.resolve import resolve
    from agentrl.workflow import Workflow

    value = resolve(target, group="agentrl.workflows")
    if isinstance(value, Workflow):
        raise UserError(f"{target} is a workflow; name the function that returns an Experiment of it")
    if callable(value):
        with capture() as caught:
            value = value()
        if isinstance(caught.error, AgentRLError):
            raise caught.error
        if caught.error is not None:
            raise UserError(f"{target} failed: {describe(caught.error)}") from caught.error
    if not isinstance(value, Experiment):
        raise UserError(f"{target} gives {type(value).__name__}; it must be an Experiment, or a function that returns one")
    return apply_settings(value, settings)


def _experiment_of(run: Run, target: str | None, settings: Sequence[str]) -> Experiment[Any, Any]:
    """The experiment of a run; further settings stand behind those it was started with, and in their place."""
    described = run.described
    target = target or described["target"]
    if not target:
        raise UserError(f"{run.folder} was not started by `agentrl train`; say what it ran: --target file.py:name")
    changed = {setting.partition("=")[0].strip() for setting in settings}
    kept = [setting for setting in described["settings"] if setting.partition("=")[0].strip() not in changed]
    return open_experiment(target, [*kept, *settings])


def _settled(target: str) -> str:
    """A target that means the same in every working directory."""
    place, colon, name = target.rpartition(":")
    return f"{Path(place).expanduser().resolve()}{colon}{name}" if place.endswith(".py") else target


def _task(experiment: Experiment[Any, Any], text: str) -> Any:
    import json

    from agentrl.workflow import task_from_json

    with capture() as caught:
        return task_from_json(experiment.workflow, json.loads(text))
    raise UserError(f"--task must be JSON, got {text[:80]!r}: {caught.error}")


def _print_tree(episode: Any, arguments: argparse.Namespace, decode: Callable[[IntArray], str] | None = None) -> None:
    import shutil

    from agentrl.view import render_tree

    print(render_tree(episode, width=shutil.get_terminal_size((120, 24)).columns, full=arguments.full, decode=decode))
    print()


def _decoder(folder: Path) -> Callable[[IntArray], str]:
    """Decodes with the tokenizer of the run's model; a checkpoint has a copy of it."""
    from agentrl.rendering.folder import read_folder
    from agentrl.run import Run

    run = Run.find(folder)
    policies = run.described["experiment"]["policies"]
    found = [policies] if "model" in policies else list(policies.values())
    models = sorted({policy["model"] for policy in found})
    if len(models) != 1:
        raise UserError(f"--context needs one model for all policies, got {', '.join(models)}")
    saved = run.checkpoints(found[0]["name"])
    tokenizer = read_folder(saved[-1] if saved else Path(models[0])).tokenizer
    return lambda ids: tokenizer.decode(ids.tolist(), skip_special_tokens=False)


def _log_to(console: Console) -> None:
    """Log lines go above the table, not through it."""
    import logging

    class Above(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            console.note(self.format(record))

    handler = Above(logging.INFO)
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours = logging.getLogger("agentrl")
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False
