"""`agentrl train`: trains; at the end the change in held-out success, a curve and where the weights are."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Coroutine, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.cli.arguments import TARGET, add_settings, open_experiment, settled

if TYPE_CHECKING:
    import asyncio

    from agentrl.experiment import Experiment
    from agentrl.metrics import Console, Sink
    from agentrl.train import TrainResult

ABOUT = "train an experiment's policies; called again, goes on where it was"


def options(train: argparse.ArgumentParser) -> None:
    """What may be written behind the command."""
    train.add_argument("target", metavar="TARGET", help=TARGET)
    train.add_argument("--out", required=True, type=Path, metavar="DIR", help="the run's folder")
    train.add_argument("--credit", metavar="NAME", help="the estimator: a short name, module:name or file.py:name")
    train.add_argument("--fresh", action="store_true", help="begin anew: what the folder holds is deleted")
    about = "send metrics there as well: tensorboard, wandb, trackio, module:name or file.py:name; repeatable"
    train.add_argument("--sink", action="append", default=[], metavar="NAME", dest="sinks", help=about)
    about = "the same as --sink tensorboard"
    train.add_argument("--tensorboard", action="append_const", const="tensorboard", dest="sinks", help=about)
    add_settings(train)


def run(arguments: argparse.Namespace) -> int:
    """Trains; at the end the change in held-out success, a curve and where the weights are."""
    from agentrl.cli.signals import interruptible
    from agentrl.metrics import JSONL, Console, sink_named
    from agentrl.train import train as run_training

    settings = ([f"credit={arguments.credit}"] if arguments.credit else []) + arguments.settings
    experiment = open_experiment(arguments.target, settings)
    out: Path = arguments.out
    console = Console(sys.stdout, steps=experiment.steps)
    sinks: list[Sink] = [JSONL(out / "metrics.jsonl"), console, *map(sink_named, dict.fromkeys(arguments.sinks))]

    def work(stop: asyncio.Event) -> Coroutine[Any, Any, TrainResult]:
        return run_training(
            experiment,
            out=out,
            sinks=sinks,
            stop=stop,
            fresh=arguments.fresh,
            target=settled(arguments.target),
            settings=settings,
        )

    try:
        with _logging_to(console):
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


@contextmanager
def _logging_to(console: Console) -> Generator[None]:
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
    try:
        yield
    finally:
        ours.removeHandler(handler)
        ours.propagate = True
