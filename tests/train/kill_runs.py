"""Kills a training run by SIGKILL and lets it go on, many times; tells what each run ended with, as JSON lines.

    python -m tests.train.kill_runs FOLDER CASE [CASE ...]        CASE = point:count, or @seed for a moment drawn from it

Forks from one process that has everything imported, for speed. A 30-second run: set AGENTRL_KILL_STEPS=60. With
AGENTRL_KILL_STALENESS=2 episodes go on while weights change; such a run is held against its own recorded batches.
AGENTRL_KILL_SET="credit=gae critic=on" puts settings into the experiment.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from agentrl import faults, train
from agentrl.config import apply_settings
from agentrl.errors import capture
from agentrl.learning.checkpoint import load
from agentrl.learning.replay import relearn
from agentrl.run import Run
from agentrl.setup import open_learners
from agentrl.store.sqlite import SQLiteStore
from tests.train.small import small, warmed

STEPS = int(os.environ.get("AGENTRL_KILL_STEPS", "4"))
SETTINGS = os.environ.get("AGENTRL_KILL_SET", "").split()
STALENESS = int(os.environ.get("AGENTRL_KILL_STALENESS", "0"))


def forked(body: Callable[[], None], *, kill_after: float | None = None) -> int:
    """Runs `body` in a child; gives its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        with capture() as caught:
            body()
        if caught.error is not None:
            print(f"child: {caught.error!r}", file=sys.stderr, flush=True)
        os._exit(caught.error is not None)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def experiment(model: Path) -> Any:
    return apply_settings(small(model, steps=STEPS, checkpoint_every=2, eval_every=2, max_staleness=STALENESS), SETTINGS)


def run(model: Path, out: Path, fault: str = "") -> None:
    faults.arm(fault)
    asyncio.run(train(experiment(model), out=out))


def relearn_from_scratch(model: Path, out: Path) -> None:
    """Fails unless the recorded batches, learned again, give the weights that the run ended with."""
    learners = open_learners(experiment(model), Run.find(out).lineage)
    with Run.find(out).store(read_only=True) as store:
        for name, learner in learners.items():
            relearn(store, name, learner)
        lags = [
            step.before.step - span.version.step
            for step in store.steps("searcher")
            for row in step.rows
            for turn in store.episode(row.episode).turns
            for span in turn.versions
        ]
    assert max(lags) <= STALENESS, lags
    assert digest_of(*(learners[name].weights() for name in sorted(learners))) == digest(out)


def finished(out: Path) -> dict[str, Any]:
    """What the store holds of every episode that has ended."""
    if not (out / "store.db").exists():
        return {}
    found: dict[str, Any] = {}
    with capture() as caught, SQLiteStore(out / "store.db", read_only=True) as store:
        for episode in store.episodes():
            if episode.status != "running":
                turns = [[turn.digest.hex(), turn.logprobs.tobytes().hex()] for turn in episode.turns]
                found[episode.id] = [episode.status, episode.output, episode.reward, turns]
    if caught.error is not None and "schema 0" not in str(caught.error):  # killed while the file was being made
        raise caught.error
    return found


def digest(out: Path) -> str:
    """Of the last checkpoints of all learners."""
    folders = [sorted(learner.glob("step-*"))[-1] for learner in sorted((out / "checkpoints").iterdir())]
    return digest_of(*(load(folder).weights for folder in folders))


def digest_of(*learners: Mapping[str, Any]) -> str:
    sum_ = hashlib.blake2b(digest_size=8)
    for weights in learners:
        for name, tensor in sorted(weights.items()):
            sum_.update(name.encode() + tensor.numpy().tobytes())
    return sum_.hexdigest()


def main() -> None:
    folder = Path(sys.argv[1])
    model = folder / "warm" / "checkpoints" / "searcher"
    if not model.exists():
        assert forked(lambda: print("warm", warmed(folder), file=sys.stderr)) == 0
    model = sorted(model.glob("step-*"))[-1]
    began = time.monotonic()
    assert forked(lambda: run(model, folder / "whole")) == 0
    seconds = time.monotonic() - began
    whole, want = digest(folder / "whole"), finished(folder / "whole")
    for case in sys.argv[2:]:
        out = folder / case.replace(":", "-")
        if case.startswith("@"):
            after = random.Random(int(case[1:])).uniform(0.05, 0.95) * seconds
            status = forked(lambda out=out: run(model, out), kill_after=after)
        else:
            status = forked(lambda out=out, case=case: run(model, out, case))
        before = finished(out)
        again = forked(lambda out=out: run(model, out))
        after_all = finished(out) if again == 0 else {}
        report = {
            "case": case,
            "killed": status == -signal.SIGKILL,
            "resumed": again == 0,
            "same_weights": again == 0 and digest(out) == whole,
            "finished_when_killed": len(before),
            "lost": sum(after_all.get(name) != episode for name, episode in before.items()),
            "same_episodes": after_all == want,
            "relearned": again == 0 and forked(lambda out=out: relearn_from_scratch(model, out)) == 0,
        }
        print(json.dumps(report), flush=True)
        shutil.rmtree(out)


if __name__ == "__main__":
    main()
