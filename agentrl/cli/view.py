"""`agentrl view`: a run's episodes as a list, or one as a tree."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from agentrl.cli.arguments import add_page, print_tree
from agentrl.errors import UserError

if TYPE_CHECKING:
    from agentrl.episode import IntArray

ABOUT = "a run's episodes as a list, or one as a tree"


def options(view: argparse.ArgumentParser) -> None:
    """What may be written behind the command."""
    view.add_argument("folder", metavar="RUN", type=Path)
    view.add_argument("episode", metavar="EPISODE", nargs="?")
    view.add_argument("-n", type=int, default=40, metavar="N", dest="count", help="list the last N (default 40)")
    view.add_argument("--split", help="only these: train, eval, serve, fork, rollout")
    view.add_argument("--status", help="only these: done, failed, running ...")
    view.add_argument("--step", type=int, help="only those sampled for this batch")
    view.add_argument("--context", action="store_true", help="show what each turn was given; reads the model's tokenizer")
    add_page(view)


def run(arguments: argparse.Namespace) -> int:
    """Prints a run's episodes as a list, or one as a tree."""
    from agentrl.store.contract import EpisodeFilter
    from agentrl.store.sqlite import SQLiteStore
    from agentrl.view import render_list

    folder: Path = arguments.folder
    with SQLiteStore(folder if folder.is_file() else folder / "store.db", read_only=True) as store:
        if arguments.episode is not None:
            print_tree(store.episode(arguments.episode), arguments, decoder(folder) if arguments.context else None)
            return 0
        status = (arguments.status,) if arguments.status else None
        heads = list(store.heads(EpisodeFilter(split=arguments.split, step=arguments.step, status=status)))
        shown = heads[-max(1, arguments.count) :]
        print(render_list((head.split, head.step, store.episode(head.id)) for head in shown))
        if len(shown) < len(heads):
            print(f"the last {len(shown)} of {len(heads)}; -n {len(heads)} shows all")
    return 0


def decoder(folder: Path) -> Callable[[IntArray], str]:
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
