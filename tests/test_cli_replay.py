"""`agentrl replay --fork N --edit`: a person changes a turn or a result, and the fork goes on live."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from agentrl.cli import main
from agentrl.episode import Episode
from agentrl.store.sqlite import SQLiteStore
from agentrl_workflows.search_qa.model import make_model
from tests.test_cli import ENVIRONMENT, SKY, an_episode, run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, a user's file, and a run of one step."""
    folder = tmp_path_factory.mktemp("place")
    make_model(folder / "model", hidden=32, layers=1, heads=2, head_dim=16, ff=32)
    (folder / "sky.py").write_text(SKY)
    run(folder, "train", "sky.py:shown", "--out", "run", "--set", "steps=1", "--set", "eval_every=0")
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The same folder as working directory, drafts in a folder of the test's own, and no editor."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "120")
    for name in ("VISUAL", "EDITOR"):
        monkeypatch.delenv(name, raising=False)
    yield place
    sys.modules.pop("sky", None)


def document(capsys: pytest.CaptureFixture[str], episode: str, turns: int) -> str:
    """What `--show-edit` prints."""
    assert main(["replay", "run", episode, "--fork", str(turns), "--show-edit"]) == 0
    return capsys.readouterr().out


def editor(tmp_path: Path, code: str) -> str:
    """A command for $EDITOR: Python that sees the document's path as `file`."""
    program = tmp_path / "an editor.py"
    program.write_text(f"import pathlib, sys\nfile = pathlib.Path(sys.argv[1])\n{code}\n")
    return f"{sys.executable} '{program}'"


def replacing(old: str, new: str) -> str:
    return f"text = file.read_text()\nassert {old!r} in text\nfile.write_text(text.replace({old!r}, {new!r}))"


def last_fork(folder: Path) -> Episode:
    with SQLiteStore(folder / "run" / "store.db", read_only=True) as store:
        *_, head = (head for head in store.heads() if head.fork_of is not None)
        return store.episode(head.id)


def forks(folder: Path) -> int:
    with SQLiteStore(folder / "run" / "store.db", read_only=True) as store:
        return sum(1 for head in store.heads() if head.fork_of is not None)


def drafts(tmp_path: Path) -> list[Path]:
    return sorted(tmp_path.glob("agentrl-edit-*"))


def test_the_document_shows_the_last_turn_kept_and_what_its_tools_gave(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = document(capsys, an_episode(here, "train"), 1)
    assert ">>>> turn 1: what searcher said\n<search>sky</search>\n" in shown
    assert '>>>> result 1: tool search {"query": "sky"}\nthe sky is blue\n' in shown
    assert all(line.startswith("#") for line in shown.partition("\n\n>>>>")[0].splitlines())


def test_a_result_changed_in_an_editor_is_what_the_fork_goes_on_from(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDITOR", editor(tmp_path, replacing("the sky is blue", "the sky\nis green")))
    origin = an_episode(here, "train")
    assert main(["replay", "run", origin, "--fork", "1", "--edit"]) == 0
    shown = capsys.readouterr().out
    assert f"fork of {origin}" in shown
    assert "edited by hand" in shown
    fork = last_fork(here)
    assert fork.turns[0].tool_calls[0].output == "the sky\nis green"
    assert fork.turns[0].trainable
    assert drafts(tmp_path) == []
    assert main(["replay", "run", fork.id]) == 0
    assert capsys.readouterr().out.rstrip().endswith("the replay is equal to the record")
    assert main(["view", "run", "--split", "edited"]) == 0
    assert fork.id in capsys.readouterr().out


def test_a_turn_changed_by_a_file_goes_on_live_with_the_models_own_weights(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "edit.txt"
    origin = an_episode(here, "train")
    file.write_text(document(capsys, origin, 1).replace("<search>sky</search>", "<search>sea</search>"))
    arguments = ["replay", "run", origin, "--fork", "1", "--edit", str(file), "--target", "sky.py:sky"]  # the local engine
    assert main(arguments) == 0
    assert "not trained: edited by hand" in capsys.readouterr().out
    fork = last_fork(here)
    first, second, *_ = fork.turns
    assert first.tool_calls[0].arguments == {"query": "sea"}
    assert (first.forced, np.isnan(first.logprobs).all()) == (len(first.sampled_ids), True)
    assert second.trainable
    assert np.isfinite(second.logprobs).all()
    assert fork.source == "policy"
    assert file.exists()
    assert main(["replay", "run", fork.id, "--target", "sky.py:sky"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("the replay is equal to the record")


def test_a_document_comes_through_a_pipe(place: Path) -> None:
    origin = an_episode(place, "train")
    shown = run(place, "replay", "run", origin, "--fork", "2", "--show-edit").stdout
    assert "blue" in shown
    done = subprocess.run(
        [sys.executable, "-m", "agentrl.cli", "replay", "run", origin, "--fork", "2", "--edit", "-"],
        input=shown.replace("\nblue\n", "\ngreen\n"), cwd=place, env=ENVIRONMENT, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "output green" in done.stdout
    assert "reward reward = 0" in done.stdout


def test_nothing_changed_is_a_plain_fork_and_says_so(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VISUAL", editor(tmp_path, "pass"))
    monkeypatch.setenv("EDITOR", "false")
    assert main(["replay", "run", an_episode(here, "train"), "--fork", "1", "--edit"]) == 0
    said = capsys.readouterr()
    assert "nothing was changed: this is a plain fork" in said.err
    assert "edited by hand" not in said.out


def test_what_the_parser_makes_of_a_text_is_told(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "edit.txt"
    file.write_text(">>>> turn 1\nblue\n")
    assert main(["replay", "run", an_episode(here, "train"), "--fork", "1", "--edit", str(file)]) == 0
    assert capsys.readouterr().err == "agentrl: turn 1 calls no tool any more\n"


BROKEN = [
    ("file.write_text('')", "the document is empty: nothing was forked"),
    ("file.write_text('blue')", "line 1 stands above the first >>>> line"),
    ("file.write_text('>>>> turn 7\\nblue')", "line 1 begins a section 'turn 7'; this document has turn 1, result 1"),
    ("file.write_text('>>>> turn 1\\nblue<|end|>.')", "turn 1 holds the stop token '<|end|>'"),
    ("file.write_bytes(b'\\xff')", "is no UTF-8 text (invalid start byte at byte 0)"),
]


@pytest.mark.parametrize(("code", "said"), BROKEN, ids=[said for _, said in BROKEN])
def test_an_edit_that_cannot_be_used_is_kept_and_named(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: str, said: str
) -> None:
    monkeypatch.setenv("EDITOR", editor(tmp_path, code))
    before = forks(here)
    assert main(["replay", "run", an_episode(here, "train"), "--fork", "1", "--edit"]) == 1
    told = capsys.readouterr().err
    (draft,) = drafts(tmp_path)
    assert said in told
    assert told.endswith(f"the document is kept: --edit {draft}\n")
    assert len(told.splitlines()) == 1
    assert forks(here) == before


def test_a_document_from_a_pipe_is_kept_as_well(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"nonsense")))
    assert main(["replay", "run", an_episode(here, "train"), "--fork", "1", "--edit", "-"]) == 1
    (draft,) = drafts(tmp_path)
    assert draft.read_text() == "nonsense"
    assert str(draft) in capsys.readouterr().err


EDITORS = [
    ("/no/such/editor", "the editor '/no/such/editor' cannot be started"),
    ("vi 'unclosed", "cannot be started (No closing quotation); set $EDITOR to another one"),
    ("false", "the editor ended with 1: nothing was forked"),
    ("", "--edit opens vi, which needs a terminal: set $EDITOR, or give a document with --edit FILE"),
]


@pytest.mark.parametrize(("command", "said"), EDITORS, ids=[said for _, said in EDITORS])
def test_without_an_editor_that_works_nothing_is_forked(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, said: str
) -> None:
    monkeypatch.setenv("EDITOR", command)
    before = forks(here)
    assert main(["replay", "run", an_episode(here, "train"), "--fork", "1", "--edit"]) == 1
    assert said in capsys.readouterr().err
    assert forks(here) == before


MISTAKES = [
    (["--edit"], "--edit and --show-edit need --fork N"),
    (["--fork", "0", "--edit", "x"], "--fork 0 keeps no turn"),
    (["--fork", "9", "--edit", "x"], "has 2 turns, got --fork 9"),
    (["--fork", "9"], "has 2 turns, got --fork 9"),
    (["--fork", "1", "--edit", "nowhere.txt"], "nowhere.txt cannot be read (No such file or directory); --show-edit prints a"),
    (["--fork", "1", "--edit", "run"], "run cannot be read (Is a directory)"),
]


@pytest.mark.parametrize(("arguments", "said"), MISTAKES, ids=[" ".join(arguments) for arguments, _ in MISTAKES])
def test_a_wrong_edit_is_one_clear_line(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["replay", "run", an_episode(here, "train"), *arguments]) == 1
    told = capsys.readouterr().err
    assert said in told
    assert "the document is kept" not in told
    assert len(told.splitlines()) == 1


def test_forks_of_two_episodes_of_one_group_do_not_meet(here: Path) -> None:
    with SQLiteStore(here / "run" / "store.db", read_only=True) as store:
        group = next(head.group for head in store.heads() if head.split == "train")
        members = [head.id for head in store.heads() if head.group == group]
    for member in members:
        assert main(["replay", "run", member, "--fork", "1"]) == 0
    assert last_fork(here).fork_of == members[-1]


def test_a_fork_that_leaves_its_record_fails(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "changed.py").write_text(SKY.replace("run(task.text)", 'run("another question")'))
    assert main(["replay", "run", an_episode(here, "train"), "--fork", "1", "--target", "changed.py:shown"]) == 1
    assert "the fork left its record" in capsys.readouterr().err
    sys.modules.pop("changed", None)
