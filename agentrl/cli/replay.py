"""`agentrl replay`: a stored episode again, from its record, or live from one of its turns, as it was or edited."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.cli.arguments import add_page, add_settings, experiment_of, print_tree
from agentrl.errors import AgentRLError, UserError

if TYPE_CHECKING:
    from agentrl.episode import Episode
    from agentrl.experiment import Experiment

ABOUT = "run a stored episode again from its record, without a model"


def options(replay: argparse.ArgumentParser) -> None:
    """What may be written behind the command."""
    replay.add_argument("folder", metavar="RUN", type=Path)
    replay.add_argument("episode", metavar="EPISODE")
    replay.add_argument("--fork", type=int, metavar="N", help="go on live after the first N turns; opens the engine")
    edit = replay.add_mutually_exclusive_group()
    about = (
        "with --fork: change the last turn kept and what its tools gave, in $VISUAL or $EDITOR, or by a document (- = stdin)"
    )
    edit.add_argument("--edit", nargs="?", const="", metavar="FILE", help=about)
    edit.add_argument("--show-edit", action="store_true", help="with --fork: only print the document that --edit takes")
    replay.add_argument("--target", metavar="TARGET", help="for a run that was not started by `agentrl train`")
    add_settings(replay)
    add_page(replay)


def run(arguments: argparse.Namespace) -> int:
    """Replays an episode, or goes on live from one of its turns; fails if a replay differs from the record."""
    import asyncio

    from agentrl.evaluate import replay as run_replay
    from agentrl.run import Run

    run = Run.find(arguments.folder)
    experiment = experiment_of(run, arguments.target, arguments.settings)
    if arguments.fork is not None:
        return _fork(experiment, arguments)
    if arguments.edit is not None or arguments.show_edit:
        raise UserError("--edit and --show-edit need --fork N: which turn is the last that is kept")
    replayed = asyncio.run(run_replay(experiment, run.folder, arguments.episode))
    print_tree(replayed.again, arguments)
    if replayed.differences:
        print(f"agentrl: the replay differs from the record: {'; '.join(replayed.differences)}", file=sys.stderr)
        return 1
    print("the replay is equal to the record")
    return 0


def _fork(experiment: Experiment[Any, Any], arguments: argparse.Namespace) -> int:
    import asyncio

    from agentrl.evaluate import fork, open_sheet

    at: tuple[Path, str, int] = arguments.folder, arguments.episode, arguments.fork
    if arguments.show_edit:
        _show(open_sheet(experiment, *at).text)
        return 0
    forked = asyncio.run(fork(experiment, *at)) if arguments.edit is None else _edited(experiment, at, arguments.edit)
    print_tree(forked, arguments)
    if forked.status == "divergent" and forked.failure is not None:
        print(f"agentrl: the fork left its record: {forked.failure.message}", file=sys.stderr)
        return 1
    return 0


def _edited(experiment: Experiment[Any, Any], at: tuple[Path, str, int], source: str) -> Episode:
    """A fork by an edited document, which is kept until the fork has ended."""
    import asyncio

    from agentrl.evaluate import fork, open_sheet

    sheet = open_sheet(experiment, *at)
    file = Path(source) if source not in ("", "-") else _draft(sheet.text if not source else _standard_input())
    if not source:
        _open_editor(file)
    try:
        edit = sheet.edit(_read(file))
        for note in edit.notes if edit.effects else ("nothing was changed: this is a plain fork",):
            print(f"agentrl: {note}", file=sys.stderr)
        forked = asyncio.run(fork(experiment, *at, edit=edit))
    except AgentRLError as error:
        if not file.is_file():
            raise
        raise UserError(f"{error}; the document is kept: --edit {shlex.quote(str(file))}") from error
    if source in ("", "-"):
        file.unlink()
    return forked


def _show(document: str) -> None:
    """As it is into a file or pipe; a terminal gets no control characters of what models and tools wrote."""
    from agentrl.view.text import visible

    if sys.stdout.isatty():
        print(visible(document), end="")
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(document.encode("utf-8", "surrogatepass"))


def _draft(text: str) -> Path:
    with tempfile.NamedTemporaryFile("wb", prefix="agentrl-edit-", suffix=".txt", delete=False) as file:
        file.write(text.encode("utf-8", "surrogatepass"))
    return Path(file.name)


def _standard_input() -> str:
    return _text(sys.stdin.buffer.read(), "standard input")


def _read(file: Path) -> str:
    try:
        return _text(file.read_bytes(), str(file))
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); --show-edit prints a document for it") from error


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8-sig", "surrogatepass")
    except UnicodeDecodeError as error:
        raise UserError(f"{what} is no UTF-8 text ({error.reason} at byte {error.start})") from error


def _open_editor(file: Path) -> None:
    """Returns when the editor has ended; `UserError` if there is none, or it failed."""
    chosen = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if not chosen and not (sys.stdin.isatty() and sys.stdout.isatty()):
        file.unlink()
        raise UserError("--edit opens vi, which needs a terminal: set $EDITOR, or give a document with --edit FILE")
    try:
        editor = subprocess.Popen([*shlex.split(chosen or "vi"), str(file)])
    except (OSError, ValueError) as error:
        file.unlink()
        raise UserError(f"the editor {chosen or 'vi'!r} cannot be started ({error}); set $EDITOR to another one") from error
    ours = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the editor is the editor's
    try:
        code = editor.wait()
    finally:
        signal.signal(signal.SIGINT, ours)
    if code:
        raise UserError(f"the editor ended with {code}: nothing was forked; the document is kept: --edit {file}")
