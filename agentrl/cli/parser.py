"""What may be written on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

_TARGET = "file.py:name or package.module:name: an Experiment, or a function that returns one"


def make_parser() -> argparse.ArgumentParser:
    """All commands; the chosen one's name is `command`."""
    parser = argparse.ArgumentParser(prog="agentrl", description="Train, run and look at LLM agents.")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure (also AGENTRL_DEBUG=1)")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)

    def command(name: str, about: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=about, description=about)
        # SUPPRESS: a flag given before the command is not undone by the command's own default
        made.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        return made

    _train(command("train", "train an experiment's policies; called again, goes on where it was"))
    _eval(command("eval", "success on the held-out tasks"))
    _rollout(command("rollout", "a few episodes, printed as trees"))
    _replay(command("replay", "run a stored episode again from its record, without a model"))
    _view(command("view", "a run's episodes as a list, or one as a tree"))
    _doctor(command("doctor", "what may be wrong with the installation, a model or a run"))
    return parser


def _train(train: argparse.ArgumentParser) -> None:
    train.add_argument("target", metavar="TARGET", help=_TARGET)
    train.add_argument("--out", required=True, type=Path, metavar="DIR", help="the run's folder")
    train.add_argument("--credit", metavar="NAME", help="the estimator: a short name, module:name or file.py:name")
    train.add_argument("--fresh", action="store_true", help="begin anew: what the folder holds is deleted")
    train.add_argument("--tensorboard", action="store_true", help="write DIR/tensorboard as well")
    _settings(train)


def _eval(evaluate: argparse.ArgumentParser) -> None:
    evaluate.add_argument("target", metavar="TARGET", help=_TARGET)
    _weights(evaluate)
    _settings(evaluate)


def _rollout(rollout: argparse.ArgumentParser) -> None:
    rollout.add_argument("target", metavar="TARGET", help=_TARGET)
    rollout.add_argument("-n", type=int, default=1, metavar="N", dest="count", help="episodes (default 1)")
    rollout.add_argument("--task", metavar="JSON", help="the task, instead of the experiment's own")
    rollout.add_argument("--out", type=Path, metavar="DIR", help="keep the episodes in DIR/store.db")
    _weights(rollout)
    _settings(rollout)
    _page(rollout)


def _replay(replay: argparse.ArgumentParser) -> None:
    replay.add_argument("folder", metavar="RUN", type=Path)
    replay.add_argument("episode", metavar="EPISODE")
    replay.add_argument("--fork", type=int, metavar="N", help="go on live after the first N turns; opens the engine")
    replay.add_argument("--target", metavar="TARGET", help="for a run that was not started by `agentrl train`")
    _settings(replay)
    _page(replay)


def _view(view: argparse.ArgumentParser) -> None:
    view.add_argument("folder", metavar="RUN", type=Path)
    view.add_argument("episode", metavar="EPISODE", nargs="?")
    view.add_argument("-n", type=int, default=40, metavar="N", dest="count", help="list the last N (default 40)")
    view.add_argument("--split", help="only these: train, eval, serve, fork, rollout")
    view.add_argument("--status", help="only these: done, failed, running ...")
    view.add_argument("--step", type=int, help="only those sampled for this batch")
    view.add_argument("--context", action="store_true", help="show what each turn was given; reads the model's tokenizer")
    _page(view)


def _doctor(doctor: argparse.ArgumentParser) -> None:
    doctor.add_argument("model", metavar="MODEL", nargs="?", type=Path, help="a model folder: tries template and engine")
    doctor.add_argument("--run", metavar="DIR", type=Path, dest="folder", help="a run: reads its store and checkpoints")


def _settings(command: argparse.ArgumentParser) -> None:
    about = "put a value into the experiment, such as credit.gamma=0.9; repeatable"
    command.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings", help=about)


def _weights(command: argparse.ArgumentParser) -> None:
    weights = command.add_mutually_exclusive_group()
    weights.add_argument("--run", type=Path, metavar="DIR", dest="policies", help="with the last checkpoints of this run")
    about = "with the weights of this run or model folder"
    weights.add_argument("--policies", type=Path, metavar="DIR", dest="policies", help=about)


def _page(command: argparse.ArgumentParser) -> None:
    command.add_argument("--full", action="store_true", help="do not shorten texts")
