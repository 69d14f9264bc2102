"""`agentrl export`: a run's episodes into a file that others read."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from agentrl.episode import IntArray, Turn

ABOUT = "a run's episodes as JSON lines, Parquet or a Hugging Face dataset"


def options(export: argparse.ArgumentParser) -> None:
    """What may be written behind the command."""
    export.add_argument("folder", metavar="RUN", type=Path, help="the run's folder, or a store.db")
    export.add_argument("file", metavar="FILE|FOLDER", type=Path, help="what is written; it must not exist")
    about = "by default what the name says: .jsonl, .parquet, else a folder for datasets.load_from_disk"
    export.add_argument("--format", choices=("jsonl", "parquet", "hf"), help=about)
    export.add_argument("--split", help="only these: train, eval, serve, fork, rollout")
    export.add_argument("--status", help="only these: done, overlong, failed ...; several with commas")
    export.add_argument("--step", type=int, help="only those sampled for this batch")
    export.add_argument("--group", help="only those of this group")
    about = "add the column `messages` (role, content, tool_calls), which tools for fine-tuning read; reads the tokenizer"
    export.add_argument("--as", choices=("messages",), dest="view", help=about)


def run(arguments: argparse.Namespace) -> int:
    """Writes the file; prints how much it holds."""
    from agentrl.exchange import entries_of, export_episodes, with_messages
    from agentrl.store.contract import EpisodeFilter
    from agentrl.store.sqlite import SQLiteStore

    folder: Path = arguments.folder
    status = tuple(arguments.status.split(",")) if arguments.status else None
    where = EpisodeFilter(split=arguments.split, step=arguments.step, status=status, group=arguments.group)
    file = folder if folder.is_file() else folder / "store.db"
    with SQLiteStore(file, read_only=True) as store:
        entries = entries_of(store, where)
        if arguments.view is not None:
            entries = with_messages(entries, decoder(file.parent), speech(file.parent))
        count = export_episodes(entries, arguments.file, arguments.format, messages=arguments.view is not None)
        every = sum(store.counts().values())
    print(f"{count} of {every} episodes in {arguments.file}")
    return 0


def decoder(folder: Path) -> Callable[[Turn, IntArray], str]:
    """Text of some of a turn's ids, without special tokens, by the run's own tokenizers."""
    from agentrl.errors import UserError
    from agentrl.view.tokens import Vocabularies

    known: dict[str, Tokenizer] = {}

    def decode(turn: Turn, ids: IntArray) -> str:
        if turn.tokenizer not in known:
            vocabularies = Vocabularies.read(folder, [turn])
            known.update(vocabularies.tokenizers)
            if turn.tokenizer not in known:
                raise UserError(f"messages need the run's tokenizer: {'; '.join(vocabularies.problems)}")
        return known[turn.tokenizer].decode(ids.tolist(), skip_special_tokens=True)

    return decode


def speech(folder: Path) -> Callable[[Turn, str], str]:
    """What a text says besides its calls, by the parser of the turn's policy; the whole text where that is one's own."""
    from agentrl.rendering.contract import ToolSpec
    from agentrl.rendering.folder import read_folder
    from agentrl.rendering.parsers import PARSERS, Parser, detect_parser
    from agentrl.run import Run

    run = Run.find(folder)
    policies = run.described["experiment"]["policies"]
    parsers: dict[str, Parser] = {}
    for policy in [policies] if "model" in policies else policies.values():
        if policy["parser"] in PARSERS:
            parsers[policy["name"]] = PARSERS[policy["parser"]]
        elif not policy["parser"]:
            model = read_folder([Path(policy["model"]), *run.checkpoints(policy["name"])][-1])
            added = [token.content for token in model.tokenizer.get_added_tokens_decoder().values()]
            parsers[policy["name"]] = detect_parser(model.templates["default"], added)

    def spoken(turn: Turn, text: str) -> str:
        if turn.policy not in parsers:
            return text
        return parsers[turn.policy](text, [ToolSpec(call.name, "", {}) for call in turn.tool_calls]).text

    return spoken
