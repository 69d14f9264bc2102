"""What the doctor finds, on folders that are really so."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from agentrl.doctor import EXTRAS, Finding, Report, diagnose
from agentrl.metrics import JSONL, StepMetrics
from agentrl.store.contract import EpisodeHead, EpisodeTail
from agentrl.store.sqlite import SQLiteStore
from agentrl_workflows.search_qa.model import make_model

ROOT = Path(__file__).resolve().parents[1]


def about(report: Report, subject: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.subject == subject]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny", hidden=32, layers=1, heads=2, head_dim=16, ff=32)


def make_run(folder: Path) -> Path:
    folder.mkdir()
    (folder / "experiment.json").write_text("{}")
    with SQLiteStore(folder / "store.db") as store:
        for member, status in enumerate(("done", "done", "failed")):
            head = EpisodeHead(f"g.{member}", "g", member, 3, {"text": "x" * 2000}, 1, "w")
            store.begin(head)
            store.finish(head.id, EpisodeTail(status))  # type: ignore[arg-type]
        store.begin(EpisodeHead("g.3", "g", 3, 3, None, 1, "w"))
    sink = JSONL(folder / "metrics.jsonl")
    sink.write(StepMetrics(4, {"loss": 1.0}))
    sink.close()
    return folder


def test_a_sound_installation_and_model_have_no_problem(model: Path) -> None:
    report = diagnose(model)
    assert report.ok, str(report)
    (engine,) = about(report, "local engine")
    assert engine.level == "ok"
    assert str(model) in engine.text
    (template,) = about(report, "template")
    assert "append-only" in template.text


def test_without_a_model_the_engine_is_tried_on_a_throwaway_one() -> None:
    report = diagnose()
    assert report.ok, str(report)
    assert "throwaway" in about(report, "local engine")[0].text
    assert not about(report, "template")


def test_a_folder_that_is_no_model_is_a_problem(tmp_path: Path) -> None:
    report = diagnose(tmp_path)
    assert not report.ok
    assert {finding.subject for finding in report.findings if finding.level == "problem"} == {"local engine", "template"}


def test_the_extras_are_those_of_the_project() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra, packages in EXTRAS.items():
        own = [package for package in declared[extra] if not package.startswith("agentrl-runtime[")]
        assert own == [f"{name}>={least}" for name, least in packages.items()]


def install(folder: Path, name: str, version: str) -> None:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_the_namesake_on_pypi_is_told_from_ours(tmp_path: Path) -> None:
    install(tmp_path, "AgentRL", "0.0.18")
    install(tmp_path, "agentrl_runtime", "0.1.0")
    path = os.pathsep.join(map(str, (tmp_path, ROOT)))
    code = "from agentrl.doctor import _distributions, _installed\nfor finding in _distributions(_installed()): print(finding)"
    said = subprocess.check_output([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, text=True)
    assert "ok  installation  agentrl-runtime 0.1.0" in said
    assert "NO  installation  the distribution `agentrl` 0.0.18 is installed too" in said
    assert "pip uninstall -y agentrl && pip install --force-reinstall --no-deps agentrl-runtime" in said


def test_a_package_that_is_missing_or_old_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from agentrl import doctor

    install(tmp_path, "oldish", "1.9.3rc1")
    monkeypatch.syspath_prepend(tmp_path)
    (finding,) = doctor._extras({"parts": {"oldish": "1.10", "surely_not_there": "1", "numpy": "1.26"}})
    assert finding.level == "note"
    assert "oldish 1.9.3rc1 is older than 1.10, surely_not_there is missing (there are numpy" in finding.text
    assert finding.do == 'pip install "agentrl-runtime[parts]"'


def test_each_sandbox_says_what_isolates_or_why_it_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///no/such/socket")
    found = {finding.text.partition(":")[0]: finding for finding in diagnose().findings if finding.subject == "sandbox"}
    assert (found["docker"].level, "no Docker engine answers at unix:///no/such/socket" in found["docker"].text) == (
        "note",
        True,
    )
    said = "bubblewrap" if found["process"].level == "ok" else "cannot isolate"
    assert said in found["process"].text


def test_a_sound_run_is_counted(tmp_path: Path) -> None:
    report = diagnose(run=make_run(tmp_path / "run"))
    assert report.ok, str(report)
    store = about(report, "store")
    assert store[0].text == "sound; 2 done, 1 failed, 1 running"
    assert store[1].level == "note"
    assert about(report, "checkpoints")[0].level == "note"
    assert about(report, "metrics")[0].text == "1 steps, the last is 4"


def test_a_damaged_store_is_a_problem(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with sqlite3.connect(run / "store.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page_size,) = connection.execute("PRAGMA page_size").fetchone()
        (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'episode'").fetchone()
    connection.close()
    data = bytearray((run / "store.db").read_bytes())
    data[(root - 1) * page_size + 8 : root * page_size] = b"\xa5" * (page_size - 8)
    (run / "store.db").write_bytes(data)
    report = diagnose(run=run)
    assert not report.ok
    assert {finding.subject for finding in report.findings if finding.level == "problem"} <= {"store", "run"}


def test_a_damaged_checkpoint_is_a_problem(tmp_path: Path, model: Path) -> None:
    run = make_run(tmp_path / "run")
    broken = run / "checkpoints" / "searcher" / "step-000004"
    broken.mkdir(parents=True)
    (broken / "checkpoint.json").write_text(json.dumps({"format": 1}))
    report = diagnose(run=run)
    assert [finding.level for finding in about(report, "checkpoints")] == ["problem"]


def test_a_folder_that_is_no_run_is_a_problem(tmp_path: Path) -> None:
    (finding,) = about(diagnose(run=tmp_path), "run")
    assert (finding.level, finding.do) == ("problem", "give the --out folder of a training")


def test_findings_read_as_aligned_lines() -> None:
    told = str(Report((Finding("ok", "python", "3.11"), Finding("problem", "store", "damaged\nat row 3", "mend it"))))
    assert told.splitlines() == [
        "ok  python        3.11",
        "NO  store         damaged",
        "                  at row 3",
        "                  do: mend it",
    ]
