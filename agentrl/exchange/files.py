"""Files of episodes, whatever their format."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from agentrl.episode import Episode
from agentrl.errors import UserError
from agentrl.exchange.columns import read_dataset, read_parquet, write_dataset, write_parquet
from agentrl.exchange.lines import read_lines, write_lines
from agentrl.exchange.row import Entry
from agentrl.store.contract import EpisodeFilter, Store

logger = logging.getLogger(__name__)

Format: TypeAlias = Literal["jsonl", "parquet", "hf"]
FORMATS: tuple[Format, ...] = get_args(Format)


def entries_of(store: Store, where: EpisodeFilter | None = None) -> Iterator[Entry]:
    """The episodes of a store, lazily, in the order of begin, with the media that their turns refer to."""
    where = where or EpisodeFilter()
    for head, episode in zip(store.heads(where), store.episodes(where), strict=True):
        yield Entry(head, episode, _media(store, episode))


def _media(store: Store, episode: Episode) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for digest in sorted({digest for turn in episode.turns for digest in turn.media}):
        try:
            found[digest] = store.blob(digest)
        except UserError as error:  # an import from a file that had none
            logger.warning("episode %s goes without one of its media: %s", episode.id, error)
    return found


def export_episodes(
    episodes: Iterable[Episode | Entry], path: str | Path, format: Format | None = None, *, messages: bool = False
) -> int:
    """Writes episodes into a new file (`hf`: a folder), which is there when it is whole; gives their number.

    `format` None goes by the name: .jsonl, .parquet, else a folder. `messages`: the entries have messages.
    """
    path = Path(path)
    chosen = format or format_of(path)
    if path.exists():
        raise UserError(f"{path} exists; give another name, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = (entry if isinstance(entry, Entry) else Entry.of(entry) for entry in episodes)
    draft = path.with_name(f".{path.name}.draft")
    _remove(draft)
    try:
        if chosen == "jsonl":
            count = write_lines(entries, draft)
        else:
            write = write_parquet if chosen == "parquet" else write_dataset
            count = write(entries, draft, messages)
        draft.rename(path)
    finally:
        _remove(draft)
    return count


def read_entries(path: str | Path) -> Iterator[Entry]:
    """The entries of a file or folder, lazily; its format is told by what it holds. `UserError` for what is none."""
    return _reader(Path(path))(Path(path))


def read_episodes(path: str | Path) -> Iterator[Episode]:
    """The episodes of a file or folder, lazily."""
    return (entry.episode for entry in read_entries(path))


def format_of(path: Path) -> Format:
    """What a file's name says."""
    known: dict[str, Format] = {".jsonl": "jsonl", ".parquet": "parquet", "": "hf"}
    if path.suffix not in known:
        raise UserError(f"{path.name} does not tell its format; call it .jsonl or .parquet, or say --format")
    return known[path.suffix]


def renamed(entries: Iterable[Entry], prefix: str) -> Iterator[Entry]:
    """The entries with `prefix` before the ids of episodes and groups; a fork's parent is renamed with it."""
    for entry in entries:
        changed = {"id": prefix + entry.episode.id, "group": prefix + entry.episode.group}
        if entry.episode.fork_of is not None:
            changed["fork_of"] = prefix + entry.episode.fork_of
        yield replace(entry, head=replace(entry.head, **changed), episode=replace(entry.episode, **changed))


def _reader(path: Path) -> Callable[[Path], Iterator[Entry]]:
    if path.is_dir():
        if not (path / "dataset_info.json").is_file() and not (path / "dataset_dict.json").is_file():
            kind = "a run" if (path / "store.db").is_file() else "a folder"
            raise UserError(f"{path} is {kind} and no saved dataset; give a file or folder that `agentrl export` wrote")
        return read_dataset
    if not path.is_file():
        raise UserError(f"there is no {path}; give a file or folder that `agentrl export` wrote")
    with path.open("rb") as file:
        begins = file.read(16)
    if begins.startswith(b"SQLite format 3"):
        raise UserError(f"{path} is a store; write what it holds into a file with `agentrl export {path} FILE`")
    return read_parquet if begins.startswith(b"PAR1") or path.suffix == ".parquet" else read_lines


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
