"""kill -9 at named points and at drawn moments: the run goes on, ends with the same weights, and loses no finished episode."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED = [
    "model.begun:9", "model.done:30", "tool.begun:5", "tool.done:11", "store.before_commit:4", "store.mid_commit:7",
    "store.after_commit:9", "learn.begun:2", "learn.done:3", "publish.begun:3", "publish.done:2", "checkpoint.begun:1",
    "checkpoint.written:2", "checkpoint.done:1",
]  # fmt: skip
MOMENTS = [f"@{seed}" for seed in range(10)]


def killed(folder: Path, cases: list[str], settings: str = "") -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.train.kill_runs", str(folder), *cases]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tools"), str(ROOT / "workflows")])
    env = {**os.environ, "PYTHONPATH": paths, "AGENTRL_KILL_SET": settings}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("part", [0, 1])
def test_killed_at_a_named_point_a_run_ends_as_if_never_stopped(part: int, tmp_path: Path) -> None:
    reports = killed(tmp_path, NAMED[part::2])
    assert [report["case"] for report in reports] == NAMED[part::2]
    for report in reports:
        assert report["killed"], f"{report} - the point was never reached"
        assert report["resumed"] and report["same_weights"] and report["same_episodes"] and report["lost"] == 0, report
        assert report["relearned"], report


@pytest.mark.timeout(400)
@pytest.mark.parametrize("part", [0, 1])
def test_killed_at_any_moment_a_run_ends_as_if_never_stopped(part: int, tmp_path: Path) -> None:
    reports = killed(tmp_path, MOMENTS[part::2])
    assert len(reports) == 5
    for report in reports:
        assert report["resumed"] and report["same_weights"] and report["same_episodes"] and report["lost"] == 0, report
        assert report["relearned"], report


@pytest.mark.timeout(400)
def test_killed_between_policy_and_critic_a_run_ends_as_if_never_stopped(tmp_path: Path) -> None:
    cases = ["store.mid_commit:7", "learn.begun:3", "learn.done:3", "checkpoint.written:3", "checkpoint.done:1", "@3"]
    reports = killed(tmp_path, cases, "credit=gae credit.over=token critic=on critic.epochs=2")
    assert [report["case"] for report in reports] == cases
    for report in reports:
        assert report["killed"] or report["case"] == "@3", report
        assert report["resumed"] and report["same_weights"] and report["same_episodes"] and report["lost"] == 0, report
        assert report["relearned"], report
