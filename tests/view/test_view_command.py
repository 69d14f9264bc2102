"""`agentrl view` on a real run: the terminal, pages, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from agentrl.cli import main
from agentrl.store.contract import EpisodeHead
from agentrl.store.sqlite import SQLiteStore

ONE, OTHER = "s000001.000.1", "s000001.000.2"


def failed(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main(["view", *map(str, arguments)]) == 1
    return capsys.readouterr().err


def page(capsys: pytest.CaptureFixture[str], file: Path, *arguments: str | Path) -> str:
    """The page that the command wrote."""
    assert main(["view", *map(str, arguments), "--html", str(file)]) == 0
    assert capsys.readouterr().out.startswith(f"{file}: ")
    return file.read_text("utf-8")


def test_an_episode_s_credit_is_told_in_the_terminal(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", str(run), ONE]) == 0
    shown = capsys.readouterr().out
    assert "● searcher 0 credit " in shown
    assert "learned in step 1" in shown
    assert "\x1b" not in shown


def test_an_episode_that_nothing_learned_from_has_no_credit(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", str(run), "e000000.0000.0"]) == 0
    shown = capsys.readouterr().out
    assert "● searcher 0" in shown
    assert "credit" not in shown


def test_a_page_of_an_episode_a_diff_and_a_list(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "page.html"
    one = page(capsys, file, run, ONE)
    assert f"episode {ONE}" in one
    assert "log-prob" in one
    assert "advantage" in one
    assert "by id:" not in one
    assert f"{ONE} and {OTHER}" in page(capsys, file, run, ONE, "--diff", OTHER)
    listed = page(capsys, file, run, "--split", "train", "-n", "3")
    assert listed.count('<details class="episode"') == 3
    assert "the last 3 of 16" in listed


def test_a_diff_takes_an_episode_of_another_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run, tmp_path / "another")
    assert f"{ONE} and {OTHER}" in page(capsys, tmp_path / "page.html", run, ONE, "--diff", f"{tmp_path / 'another'}:{OTHER}")


def test_a_store_alone_is_shown_with_token_ids_and_why(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with SQLiteStore(run / "store.db", read_only=True):  # a reader leaves all that was written in the file
        shutil.copy(run / "store.db", tmp_path / "store.db")
    shown = page(capsys, tmp_path / "page.html", tmp_path, ONE)
    assert f"some tokens are shown by id: {tmp_path} has no model folder with this tokenizer" in shown
    assert "advantage" in shown
    assert main(["view", str(tmp_path), ONE, "--context"]) == 0
    assert "some tokens are shown by id" in capsys.readouterr().out


def test_a_run_without_its_models_is_shown_with_token_ids(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "rl", ignore=shutil.ignore_patterns("checkpoints"))
    described = (tmp_path / "rl" / "experiment.json").read_text()
    (tmp_path / "rl" / "experiment.json").write_text(described.replace(str(run.parent / "model"), str(tmp_path / "gone")))
    assert f"some tokens are shown by id: {tmp_path / 'gone'} has no tokenizer.json" in page(
        capsys, tmp_path / "page.html", tmp_path / "rl", ONE
    )


def test_a_running_episode_is_shown_as_far_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with SQLiteStore(tmp_path / "store.db") as store:
        store.begin(EpisodeHead("g1.0", "g1", 0, 1, {"text": "a question"}, 5, "ab"))
    shown = page(capsys, tmp_path / "page.html", tmp_path, "g1.0")
    assert "running" in shown
    assert "no turn yet" in shown
    assert "a question" in shown


def test_an_unknown_episode_is_refused_with_near_ones(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "page.html"
    for arguments in ([run, "s000001.000.9"], [run, ONE, "--diff", "s000001.000.9"]):
        said = failed(capsys, *arguments, "--html", file)
        assert "no episode 's000001.000.9'" in said
        assert "did you mean s000001.000." in said
    assert not file.exists()


def test_a_page_in_a_folder_that_is_not_there_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = failed(capsys, run, ONE, "--html", tmp_path / "no" / "page.html")
    assert f"there is no folder {tmp_path / 'no'}; give --html a file in a folder that exists" in said
    assert f"{tmp_path} is a folder" in failed(capsys, run, ONE, "--html", tmp_path)


def test_a_diff_needs_a_page_and_an_episode(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([run, ONE, "--diff", OTHER], [run, "--diff", OTHER, "--html", tmp_path / "page.html"]):
        assert "agentrl view RUN EPISODE --diff OTHER --html PAGE.html" in failed(capsys, *arguments)
