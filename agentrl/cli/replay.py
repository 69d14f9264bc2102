"""`agentrl replay`: a stored episode again, from its record, or live from one of its turns."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from agentrl.cli.arguments import add_page, add_settings, experiment_of, print_tree

ABOUT = "run a stored episode again from its record, without a model"


def options(replay: argparse.ArgumentParser) -> None:
    """What may be written behind the command."""
    replay.add_argument("folder", metavar="RUN", type=Path)
    replay.add_argument("episode", metavar="EPISODE")
    replay.add_argument("--fork", type=int, metavar="N", help="go on live after the first N turns; opens the engine")
    replay.add_argument("--target", metavar="TARGET", help="for a run that was not started by `agentrl train`")
    add_settings(replay)
    add_page(replay)


def run(arguments: argparse.Namespace) -> int:
    """Replays an episode, or goes on live from one of its turns; fails if a replay differs from the record."""
    import asyncio

    from agentrl.evaluate import fork
    from agentrl.evaluate import replay as run_replay
    from agentrl.run import Run

    run = Run.find(arguments.folder)
    experiment = experiment_of(run, arguments.target, arguments.settings)
    if arguments.fork is not None:
        print_tree(asyncio.run(fork(experiment, run.folder, arguments.episode, arguments.fork)), arguments)
        return 0
    replayed = asyncio.run(run_replay(experiment, run.folder, arguments.episode))
    print_tree(replayed.again, arguments)
    if replayed.differences:
        print(f"agentrl: the replay differs from the record: {'; '.join(replayed.differences)}", file=sys.stderr)
        return 1
    print("the replay is equal to the record")
    return 0
