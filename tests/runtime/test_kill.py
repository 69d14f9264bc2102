"""A process killed by SIGKILL at any effect and any commit, over the real store: it goes on where it was, and then replays."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentrl.store.sqlite import SQLiteStore
from tests.runtime.harness import HEAD, play
from tests.runtime.killed import as_node
from tests.runtime.programs import Bench, workflow

PROGRAMS: dict[str, Any] = {
    "branches": [
        "seq",
        ["group", True, *(["seq", ["effect", "ok", "async"], ["draw"], ["effect", "slow", "sync"]] for _ in range(3))],
        ["race", ["effect", "slow", "async"], ["effect", "ok", "async"], ["sleep", 0.003]],
        ["completed", True, ["threadsafe"], ["retry", 3], ["reward", 1.0]],
        ["timeout", 0.001, "timeout", ["effect", "slow", "async"]],
    ],
    "libraries": [
        "seq",
        ["queue", 2, ["effect", "ok", "async"], ["effect", "flaky", "async"], ["thread", False], ["effect", "slow", "async"]],
        ["generator", 1, False, ["effect", "ok", "async"], ["effect", "ok", "async"]],
        ["cancel", ["effect", "ok", "async"], ["swallow", ["effect", "slow", "async"]]],
        ["left", ["ending", ["sleep", 0.003], ["effect", "ok", "async"]]],
        ["guarded", 1, ["effect", "ok", "sync"], ["effect", "slow", "async"]],
    ],
}
POINTS = ("effect.begun", "effect.done", "store.before_commit", "store.mid_commit", "store.after_commit")


def run(path: Path, seed: int, program: Any, fault: str) -> int:
    """Runs the program until it ends or dies; the exit status."""
    root = Path(__file__).parents[2]
    environment = os.environ | {"AGENTRL_FAULT": fault, "PYTHONPATH": str(root), "PYTHONHASHSEED": str(seed)}
    command = [sys.executable, "-m", "tests.runtime.killed", str(path), str(seed), json.dumps(program)]
    return subprocess.run(command, env=environment, cwd=root, timeout=60, check=False).returncode


@pytest.mark.parametrize("name", PROGRAMS)
async def test_a_killed_process_goes_on_where_it_was(name: str, tmp_path: Path) -> None:
    path, program, rng = tmp_path / "store.db", PROGRAMS[name], random.Random(name)
    statuses = [run(path, n, program, f"{rng.choice(POINTS)}:{rng.randrange(1, 9)}") for n in range(7)]
    statuses.append(run(path, 99, program, ""))
    assert statuses[-1] == 0
    assert -signal.SIGKILL in statuses[:-1], "no run was killed"
    with SQLiteStore(path, read_only=True) as store:
        record, tail = store.journal(HEAD.id), store.tail(HEAD.id)
    assert tail is not None
    bench = Bench(0)
    effects, again = await play(workflow(as_node(program), bench), record, mode="replay")
    assert (again.status, again.output, again.failure) == (tail.status, tail.output, tail.failure)
    assert (bench.calls, len(effects)) == (0, len(record))
    places = [effect.key for effect in record if effect.status in ("ok", "error")]
    assert len(places) == len(set(places))
