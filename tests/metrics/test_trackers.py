"""W&B and Trackio as sinks: what they store without a network, and what a training does when they fail."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import sqlite3
import subprocess
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from agentrl.errors import UserError
from agentrl.metrics import JSONL, SINKS, StepMetrics, TensorBoard, Trackio, WandB, read_metrics, sink_named, trackers
from agentrl_workflows.search_qa.model import make_model
from tests.metrics.wandb_file import history, runs
from tests.test_cli import SKY, run

OWN = '''
import os, signal, time
from pathlib import Path

class Own:
    """A sink of one's own, which knows its run."""
    def begin(self, folder, described):
        self.file = folder / "own.txt"
    def write(self, metrics):
        with self.file.open("a") as file:
            file.write(f"{metrics.step} {described(metrics)}\\n")
    def note(self, text): ...
    def close(self): ...

def described(metrics):
    return "loss" in metrics.values

class Breaks(Own):
    def write(self, metrics):
        raise ConnectionError("the network is down")

class Kills(Own):
    """Ends W&B's own service after the first batch, when its run is open."""
    def write(self, metrics):
        if metrics.step == 1:
            until = time.monotonic() + 60
            while not list(self.file.parent.glob("wandb/*run-*/files/*")) and time.monotonic() < until:
                time.sleep(0.05)
            for pid in services():
                os.kill(pid, signal.SIGKILL)

def services():
    for place in Path("/proc").glob("[0-9]*"):
        try:
            ours = f"PPid:\\t{os.getpid()}\\n" in (place / "status").read_text()
            if ours and b"wandb-core" in (place / "cmdline").read_bytes():
                yield int(place.name)
        except OSError:
            continue

nothing = 3
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model and a user's files."""
    folder = tmp_path_factory.mktemp("place")
    make_model(folder / "model", hidden=32, layers=1, heads=2, head_dim=16, ff=32)
    (folder / "sky.py").write_text(SKY)
    (folder / "own.py").write_text(OWN)
    return folder


def trained(place: Path, out: str, *arguments: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """A training of two batches of demonstrations, its home in the folder."""
    home = {"HOME": str(place), "WANDB_MODE": "offline", "TRACKIO_DIR": str(place / "trackio")}
    return run(place, "train", "sky.py:shown", "--out", out, *arguments, code=code, **(home | environment))


def logged(place: Path) -> list[tuple[str, str, int, dict[str, Any]]]:
    """What Trackio stored: (run's id, name, step, values)."""
    with closing(sqlite3.connect(place / "trackio" / "agentrl.db")) as database:
        rows = database.execute("SELECT run_id, run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    return [(run_id, name, step, json.loads(values)) for run_id, name, step, values in rows]


@pytest.fixture(scope="module")
def sent(place: Path) -> tuple[Path, str]:
    """A training of two batches, and one more by a second call, that sends its metrics everywhere; and what both printed."""
    sinks = [name for name in ("wandb", "trackio") if importlib.util.find_spec(name) is not None]
    named = [part for name in ("own.py:Breaks", *sinks, *sinks, "own.py:Own", "tensorboard") for part in ("--sink", name)]
    done = [trained(place, "out", *named), trained(place, "out", *named, "--set", "steps=3")]
    return place / "out", done[0].stdout


def test_wandb_stores_every_step_offline_and_a_resume_goes_on_in_the_same_run(sent: tuple[Path, str]) -> None:
    pytest.importorskip("wandb")
    out, _ = sent
    rows = history(out)
    assert sorted({row["step"] for row in rows}) == [0, 1, 2, 3]
    for step in read_metrics(out / "metrics.jsonl")[1:]:
        (row,) = [row for row in rows if row["step"] == step.step and "loss" in row]
        assert row["loss"] == pytest.approx(step.values["loss"])
        assert row["episodes/slowest"] == step.texts["episodes/slowest"]
    assert set(runs(out)) == {((out / "wandb.id").read_text(), "agentrl", "out")}


def test_trackio_stores_every_step_and_a_resume_goes_on_in_the_same_run(sent: tuple[Path, str]) -> None:
    pytest.importorskip("trackio", reason="trackio asks for an older pillow than its neighbours: pip install --no-deps")
    out, _ = sent
    rows = logged(out.parent)
    assert len({(run_id, name) for run_id, name, _, _ in rows}) == 1
    assert rows[0][1] == f"out-{(out / 'trackio.id').read_text()}"
    for step in read_metrics(out / "metrics.jsonl")[1:]:
        (values,) = [values for _, _, number, values in rows if number == step.step and "loss" in values]
        assert values["loss"] == pytest.approx(step.values["loss"])
        assert values["episodes/slowest"] == step.texts["episodes/slowest"]


def test_a_sink_of_ones_own_that_fails_ends_no_training(sent: tuple[Path, str]) -> None:
    out, printed = sent
    assert printed.count("the sink Breaks failed and the training goes on: ConnectionError: the network is down") == 1
    assert [step.step for step in read_metrics(out / "metrics.jsonl")] == [0, 1, 2, 3]
    assert [line for line in (out / "own.txt").read_text().splitlines() if "True" in line] == ["1 True", "2 True", "3 True"]
    assert list((out / "tensorboard").iterdir())


def test_wandb_whose_service_dies_is_named_once_and_the_training_goes_on(place: Path) -> None:
    pytest.importorskip("wandb")
    done = trained(place, "k", "--sink", "wandb", "--sink", "own.py:Kills")
    told = done.stdout + done.stderr  # beside the live table, or after it, if the last words find the service gone
    assert told.count("the sink wandb failed and the training goes on") == 1
    assert [step.step for step in read_metrics(place / "k" / "metrics.jsonl")] == [0, 1, 2]
    assert (place / "k" / "checkpoints" / "searcher" / "step-000002").is_dir()


def test_wandb_without_a_key_is_refused_before_the_training(place: Path) -> None:
    pytest.importorskip("wandb")
    done = trained(place, "n", "--sink", "wandb", code=1, WANDB_MODE="online", WANDB_API_KEY="", NETRC=str(place / "none"))
    assert "W&B cannot be used" in done.stderr and "WANDB_MODE=offline" in done.stderr
    assert not (place / "n" / "metrics.jsonl").exists()


# --- by name -------------------------------------------------------------------------------------------------------------
def test_a_name_gives_a_sink(place: Path) -> None:
    assert isinstance(sink_named("tensorboard"), TensorBoard)
    assert type(sink_named(f"{place / 'own.py'}:Own")).__name__ == "Own"
    with pytest.raises(UserError, match="did you mean wandb"):
        sink_named("wndb")
    with pytest.raises(UserError, match="gives int, which is no sink: it has no write, note, close"):
        sink_named(f"{place / 'own.py'}:nothing")


@pytest.mark.parametrize(("sink", "name"), [(WandB, "wandb"), (Trackio, "trackio")])
def test_a_missing_package_is_named_with_its_extra(sink: type, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert SINKS[name] is sink
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(UserError, match=rf'needs {name}; pip install "agentrl-runtime\[{name}\]"'):
        sink()


# --- in a thread of its own ----------------------------------------------------------------------------------------------
class Slow(trackers.Tracker):
    """A tracker whose server takes its time."""

    name = "json"

    def __init__(self, answers: threading.Event) -> None:
        super().__init__()
        self.answers = answers
        self.seen: list[tuple[int, dict[str, Any]]] = []

    def _open(self) -> Any:
        return self

    def _log(self, run: Any, step: int, values: Any) -> None:
        self.answers.wait()
        self.seen.append((step, dict(values)))

    def _end(self, run: Any) -> None:
        self.seen.append((-1, {}))


def test_a_slow_server_holds_nobody_back_and_gets_all_in_the_end() -> None:
    answers = threading.Event()
    sink = Slow(answers)
    for step in range(3):
        sink.write(StepMetrics(step, {"loss": 1.0, "bad": float("nan")}, {"episodes/slowest": "e1"}))
    sink.note("a note")
    assert sink.seen == []
    answers.set()
    sink.close()
    values = {"loss": 1.0, "episodes/slowest": "e1"}
    assert sink.seen == [(0, values), (1, values), (2, values), (2, {"note": "a note"}), (-1, {})]


def test_a_server_that_never_answers_is_left_behind(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(trackers, "PATIENCE", 0.05)
    answers = threading.Event()
    sink = Slow(answers)
    sink.write(StepMetrics(0, {"loss": 1.0}))
    with caplog.at_level(logging.WARNING):
        sink.close()
    assert re.search("json has not taken everything after 0.05 s and is left behind", caplog.text)
    answers.set()


def test_a_tracker_that_was_given_nothing_opens_nothing(tmp_path: Path) -> None:
    sink = Slow(threading.Event())
    sink.begin(tmp_path, {})
    sink.close()
    assert sink.seen == []
    assert list(tmp_path.iterdir()) == []


def test_a_run_keeps_its_id(tmp_path: Path) -> None:
    ids: list[str] = []
    for folder in (tmp_path / "a", tmp_path / "a", tmp_path / "b"):
        sink = Slow(threading.Event())
        sink.begin(folder, {})
        ids.append(sink.kept_id())
    assert ids[0] == ids[1] != ids[2]


def test_texts_are_kept_apart_from_numbers(tmp_path: Path) -> None:
    sink = JSONL(tmp_path / "m.jsonl")
    sink.write(StepMetrics(1, {"loss": 0.5}, {"episodes/slowest": "e1"}))
    sink.close()
    assert read_metrics(tmp_path / "m.jsonl") == (StepMetrics(1, {"loss": 0.5}, {"episodes/slowest": "e1"}),)
