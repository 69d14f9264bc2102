"""`agentrl rollout`: a few episodes, printed as trees."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.cli.arguments import TARGET, add_page, add_settings, add_weights, open_experiment, print_tree
from agentrl.errors import UserError, capture

if TYPE_CHECKING:
    from agentrl.experiment import Experiment

ABOUT = "a few episodes, printed as trees"


def options(rollout: argparse.ArgumentParser) -> None:
    """What may be written behind the command."""
    rollout.add_argument("target", metavar="TARGET", help=TARGET)
    rollout.add_argument("-n", type=int, default=1, metavar="N", dest="count", help="episodes (default 1)")
    rollout.add_argument("--task", metavar="JSON", help="the task, instead of the experiment's own")
    rollout.add_argument("--out", type=Path, metavar="DIR", help="keep the episodes in DIR/store.db")
    add_weights(rollout)
    add_settings(rollout)
    add_page(rollout)


def run(arguments: argparse.Namespace) -> int:
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
        print_tree(episode, arguments)
    return 0


def _task(experiment: Experiment[Any, Any], text: str) -> Any:
    import json

    from agentrl.workflow import task_from_json

    with capture() as caught:
        return task_from_json(experiment.workflow, json.loads(text))
    raise UserError(f"--task must be JSON, got {text[:80]!r}: {caught.error}")
