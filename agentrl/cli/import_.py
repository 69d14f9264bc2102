"""`agentrl import`: episodes of a file into a store."""

from __future__ import annotations

import argparse
from pathlib import Path

ABOUT = "episodes that `agentrl export` wrote, into a store"


def options(parser: argparse.ArgumentParser) -> None:
    """What may be written behind the command."""
    parser.add_argument("file", metavar="FILE|FOLDER", type=Path, help="JSON lines, Parquet, or a saved dataset")
    parser.add_argument("store", metavar="RUN|STORE", type=Path, help="a run's folder, or a store.db, which is made if need be")
    parser.add_argument("--rename", default="", metavar="PREFIX", help="put PREFIX before every id")
    parser.add_argument("--source", help="say that they come from there (replay, demonstration, teacher ...)")


def run(arguments: argparse.Namespace) -> int:
    """Puts the episodes into the store; prints how many."""
    from typing import get_args

    from agentrl.episode import Source
    from agentrl.errors import UserError
    from agentrl.exchange import import_episodes, read_entries, renamed
    from agentrl.store.sqlite import SQLiteStore

    if arguments.source is not None and arguments.source not in get_args(Source):
        raise UserError(f"--source {arguments.source} is none of {', '.join(get_args(Source))}")
    place: Path = arguments.store
    of_run = (place / "experiment.json").is_file()
    if place.is_dir() and not of_run:
        raise UserError(f"{place} is a folder and holds no run; give a run's folder, or name a store: {place / 'store.db'}")
    with SQLiteStore(place / "store.db" if of_run else place) as store:
        done = import_episodes(
            store, lambda: renamed(read_entries(arguments.file), arguments.rename), source=arguments.source, of_run=of_run
        )
        store.flush_sync()
    print(f"{done.taken} episodes imported into {place}")
    if done.known:
        print(f"{done.known} were there already, the same")
    if done.running:
        print(f"{done.running} had not ended when they were exported, and are left out")
    return 0
