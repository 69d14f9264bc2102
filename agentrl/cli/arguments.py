"""What several commands take: a target, settings, weights; and what they make of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.errors import AgentRLError, UserError, capture, describe

if TYPE_CHECKING:
    from agentrl.episode import IntArray, Turn
    from agentrl.experiment import Experiment
    from agentrl.run import Run
    from agentrl.view.credit import TurnCredit

TARGET = "file.py:name or package.module:name: an Experiment, or a function that returns one"


def add_settings(command: argparse.ArgumentParser) -> None:
    """`--set NAME=VALUE`, as often as one likes; and `--unsafe-local`, which is one of them."""
    about = "put a value into the experiment, such as credit.gamma=0.9; repeatable"
    command.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings", help=about)
    about = "run sandboxed code as plain processes, which isolates NOTHING: for code that you trust"
    command.add_argument(
        "--unsafe-local", action="append_const", const="sandbox.unsafe_local=true", dest="settings", help=about
    )


def add_weights(command: argparse.ArgumentParser) -> None:
    """`--run` or `--policies`: whose weights."""
    weights = command.add_mutually_exclusive_group()
    weights.add_argument("--run", type=Path, metavar="DIR", dest="policies", help="with the last checkpoints of this run")
    about = "with the weights of this run or model folder"
    weights.add_argument("--policies", type=Path, metavar="DIR", dest="policies", help=about)


def add_page(command: argparse.ArgumentParser) -> None:
    """How an episode is printed."""
    command.add_argument("--full", action="store_true", help="do not shorten texts")


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


def experiment_of(run: Run, target: str | None, settings: Sequence[str]) -> Experiment[Any, Any]:
    """The experiment of a run; further settings stand behind those it was started with, and in their place."""
    described = run.described
    target = target or described["target"]
    if not target:
        raise UserError(f"{run.folder} was not started by `agentrl train`; say what it ran: --target file.py:name")
    changed = {setting.partition("=")[0].strip() for setting in settings}
    kept = [setting for setting in described["settings"] if setting.partition("=")[0].strip() not in changed]
    return open_experiment(target, [*kept, *settings])


def settled(target: str) -> str:
    """A target that means the same in every working directory."""
    place, colon, name = target.rpartition(":")
    return f"{Path(place).expanduser().resolve()}{colon}{name}" if place.endswith(".py") else target


def print_tree(
    episode: Any,
    arguments: argparse.Namespace,
    decode: Callable[[Turn, IntArray], str] | None = None,
    credit: Mapping[str, TurnCredit] | None = None,
) -> None:
    """Prints an episode as wide as the terminal is."""
    import shutil

    from agentrl.view import render_tree

    width = shutil.get_terminal_size((120, 24)).columns
    print(render_tree(episode, width=width, full=arguments.full, decode=decode, credit=credit or {}))
    print()
