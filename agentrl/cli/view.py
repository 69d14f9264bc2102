"""`agentrl view`: a run's episodes as a list, or one as a tree; or either as a page."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agentrl.cli.arguments import add_page, print_tree
from agentrl.errors import UserError

if TYPE_CHECKING:
    from agentrl.store.contract import EpisodeHead, Store
    from agentrl.store.sqlite import SQLiteStore
    from agentrl.view.html import Shown

ABOUT = "a run's episodes as a list, or one as a tree; or either as a page"


def options(view: argparse.ArgumentParser) -> None:
    """What may be written behind the command."""
    view.add_argument("folder", metavar="RUN", type=Path)
    view.add_argument("episode", metavar="EPISODE", nargs="?")
    view.add_argument("-n", type=int, default=40, metavar="N", dest="count", help="list the last N (default 40)")
    view.add_argument("--split", help="only these: train, eval, serve, fork, rollout")
    view.add_argument("--status", help="only these: done, failed, running ...")
    view.add_argument("--step", type=int, help="only those sampled for this batch")
    view.add_argument("--context", action="store_true", help="show what each turn was given; reads the model's tokenizer")
    view.add_argument("--html", type=Path, metavar="PAGE.html", help="write one self-contained page in place of the terminal")
    about = "with --html: side by side with this episode, of the same run or RUN:EPISODE"
    view.add_argument("--diff", metavar="OTHER", help=about)
    add_page(view)


def run(arguments: argparse.Namespace) -> int:
    """Prints a run's episodes as a list, or one as a tree; with --html, writes them as a page."""
    from agentrl.view import render_list

    if arguments.diff is not None and (arguments.html is None or arguments.episode is None):
        raise UserError(
            "--diff sets two episodes side by side on a page: agentrl view RUN EPISODE --diff OTHER --html PAGE.html"
        )
    folder: Path = arguments.folder
    with open_store(folder) as store:
        if arguments.html is not None:
            write(arguments.html, page(store, arguments))
        elif arguments.episode is not None:
            tree(store, arguments)
        else:
            heads, left_out = chosen(store, arguments)
            print(render_list((head.split, head.step, store.episode(head.id)) for head in heads))
            if left_out:
                print(f"the last {len(heads)} of {len(heads) + left_out}; -n {len(heads) + left_out} shows all")
    return 0


def open_store(folder: Path) -> SQLiteStore:
    """The store of a run, or one that stands alone; not entered yet."""
    from agentrl.store.sqlite import SQLiteStore

    return SQLiteStore(folder if folder.is_file() else folder / "store.db", read_only=True)


def chosen(store: Store, arguments: argparse.Namespace) -> tuple[list[EpisodeHead], int]:
    """The last episodes of those that are asked for, and how many came before."""
    from agentrl.store.contract import EpisodeFilter

    status = (arguments.status,) if arguments.status else None
    heads = list(store.heads(EpisodeFilter(split=arguments.split, step=arguments.step, status=status)))
    shown = heads[-max(1, arguments.count) :]
    return shown, len(heads) - len(shown)


def tree(store: Store, arguments: argparse.Namespace) -> None:
    """Prints one episode with its credit."""
    from agentrl.view.credit import recorded_credit
    from agentrl.view.tokens import Vocabularies

    episode = store.episode(arguments.episode)
    credit = recorded_credit(store, [episode], within=batches_later(arguments.folder))[episode.id]
    vocabularies = Vocabularies.read(arguments.folder, episode.turns) if arguments.context else None
    print_tree(episode, arguments, vocabularies.decode if vocabularies is not None else None, credit)
    for problem in vocabularies.problems if vocabularies is not None else ():
        print(problem)


def page(store: Store, arguments: argparse.Namespace) -> str:
    """The page that is asked for."""
    from agentrl.view.html import diff_page, episode_page, list_page

    folder: Path = arguments.folder
    if arguments.episode is None:
        heads, left_out = chosen(store, arguments)
        return list_page(folder.resolve().name, shown(store, folder, [head.id for head in heads]), left_out)
    (left,) = shown(store, folder, [arguments.episode])
    if arguments.diff is None:
        return episode_page(left)
    place, _, name = arguments.diff.rpartition(":")
    if place and Path(place).exists():
        with open_store(Path(place)) as other:
            return diff_page(left, *shown(other, Path(place), [name]))
    return diff_page(left, *shown(store, folder, [arguments.diff]))


def shown(store: Store, folder: Path, ids: Sequence[str]) -> list[Shown]:
    """Episodes with all that a page shows of them, in the order in which they began."""
    from agentrl.store.contract import EpisodeFilter
    from agentrl.view.credit import recorded_credit
    from agentrl.view.html import Shown
    from agentrl.view.tokens import Vocabularies

    episodes = {name: store.episode(name) for name in ids}
    credit = recorded_credit(store, episodes.values(), within=batches_later(folder))
    vocabularies = Vocabularies.read(folder, [turn for episode in episodes.values() for turn in episode.turns])
    heads = store.heads(EpisodeFilter(ids=tuple(ids)))
    return [Shown(episodes[head.id], head.split, head.step, credit[head.id], vocabularies) for head in heads]


def batches_later(folder: Path) -> int:
    """Batches after the one it was begun in, in which an episode of the run may have been trained.

    A group may wait for `limits.concurrency` before it samples, about as long again as its tokens may be old.
    """
    file = folder / "experiment.json"
    return 2 * int(json.loads(file.read_text())["experiment"]["max_staleness"]) if file.is_file() else 0


def write(file: Path, text: str) -> None:
    """Writes a page, in place of one that is there."""
    if file.is_dir() or not file.parent.is_dir():
        what = f"{file} is a folder" if file.is_dir() else f"there is no folder {file.parent}"
        raise UserError(f"cannot write the page: {what}; give --html a file in a folder that exists")
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write the page {file}: {error.strerror}; give --html a file that can be written") from error
    print(f"{file}: {len(text.encode()) / 1000:.0f} kB")
