"""What goes wrong gets a clear line, and nothing is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentrl import Agent, Team, UserError, train, workflow
from agentrl.errors import RunLocked
from agentrl.metrics import StepMetrics
from agentrl.run import Run
from agentrl.store.contract import EpisodeFilter
from agentrl_workflows.search_qa.experiment import warm_up
from agentrl_workflows.search_qa.questions import Question
from agentrl_workflows.search_qa.retrieval import search_of
from tests.train.small import graded, small

ROOT = Path(__file__).resolve().parents[2]


def run(experiment: Any, out: Path) -> Any:
    return asyncio.run(train(experiment, out=out, sinks=[]))


@workflow(Agent("searcher", tools=[search_of(0)], max_turns=2, max_tokens=8))
async def sometimes_raises(task: Question, team: Team) -> str:
    reply = await team["searcher"].run(task.text)
    if team.random().random() < 0.5:
        raise KeyError("the workflow's own mistake")
    return reply.text


def test_a_workflow_that_raises_loses_its_episode_and_no_other(warm: Path, tmp_path: Path) -> None:
    result = run(small(warm, steps=2, workflow=sometimes_raises, eval_every=0), tmp_path / "run")
    with Run.find(result.run).store(read_only=True) as store:
        episodes = list(store.episodes())
        trained = {row.episode for step in store.steps("searcher") for row in step.rows}
    failed = [episode for episode in episodes if episode.status == "failed"]
    assert result.batches == 2 and 0 < len(failed) < len(episodes) == 16
    assert all(episode.failure and episode.failure.fault == "workflow" for episode in failed)
    assert 'KeyError: "the workflow\'s own mistake"' in failed[0].failure.message or "KeyError" in failed[0].failure.message
    assert not trained & {episode.id for episode in failed}
    assert all(episode.rewards == () for episode in failed), "a failed episode has no reward, not reward 0"


@pytest.mark.parametrize(
    ("value", "said"), [(float("nan"), "reward=nan"), (float("inf"), "inf"), ("good", "'good'"), (None, "None")]
)
def test_a_reward_that_is_no_finite_number_is_the_rewards_fault(value: Any, said: str, warm: Path, tmp_path: Path) -> None:
    def reward(task: Any, output: str, episode: Any) -> Any:
        return value if len(episode.turns[0].sampled_ids) % 2 else graded(task, output, episode)

    result = run(small(warm, steps=1, reward=reward, eval_every=0, min_group=1), tmp_path / "run")
    with Run.find(result.run).store(read_only=True) as store:
        failed = list(store.episodes(EpisodeFilter(status=("failed",))))
    assert failed
    assert all(episode.failure and episode.failure.fault == "reward" and said in episode.failure.message for episode in failed)


def test_a_broken_checkpoint_falls_back_to_an_older_one_and_loses_nothing(
    warm: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    experiment = small(warm, steps=6)
    whole = run(experiment, tmp_path / "whole")
    run(replace(experiment, steps=4), tmp_path / "run")
    newest = Run.find(tmp_path / "run").checkpoints("searcher")[-1]
    content = bytearray((newest / "model.safetensors").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (newest / "model.safetensors").write_bytes(bytes(content))
    resumed = run(experiment, tmp_path / "run")
    assert "model.safetensors" in caplog.text and "older checkpoint" in caplog.text
    same = [(path.policies["searcher"] / "model.safetensors").read_bytes() for path in (whole, resumed)]
    assert same[0] == same[1]


def test_two_runs_in_one_folder_are_refused_with_the_pid_of_the_first(warm: Path, tmp_path: Path) -> None:
    result = run(small(warm, steps=1, eval_every=0), tmp_path / "run")
    code = (
        "import sys, time; from pathlib import Path; from agentrl.run import Run\n"
        f"with Run.find(Path({str(result.run)!r})).store(): print('open', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment())
    assert other.stdin is not None and other.stdout is not None
    try:
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(RunLocked, match=str(other.pid)):
            run(small(warm, steps=2, eval_every=0), tmp_path / "run")
    finally:
        other.stdin.close()
        other.stdout.close()
        other.wait()


def test_a_folder_with_something_else_in_it_is_left_alone(warm: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty and holds no run"):
        run(small(warm), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_full_disk_ends_the_run_with_a_clear_line_and_it_goes_on_later(warm: Path, tmp_path: Path) -> None:
    experiment = small(warm, steps=4, checkpoint_every=0)
    whole = run(experiment, tmp_path / "whole")
    run(replace(experiment, steps=1), tmp_path / "run")
    limit = (tmp_path / "run" / "store.db").stat().st_size + 40_000
    code = FULL_DISK.format(limit=limit, model=str(warm), out=str(tmp_path / "run"))
    full = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert full.returncode == 0, full.stderr[-2000:]
    assert "StoreError" in full.stdout and ("full" in full.stdout or "disk" in full.stdout), full.stdout
    resumed = run(experiment, tmp_path / "run")
    same = [(path.policies["searcher"] / "model.safetensors").read_bytes() for path in (whole, resumed)]
    assert same[0] == same[1]


# a file size limit is what a full disk is for one process
FULL_DISK = """
import asyncio, resource, signal
from pathlib import Path
from agentrl import train
from agentrl.errors import StoreError
from tests.train.small import small
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    asyncio.run(train(small(Path({model!r}), steps=4, checkpoint_every=0), out={out!r}, sinks=[]))
except StoreError as error:
    print("StoreError", error)
"""


def environment() -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tools"), str(ROOT / "workflows")])
    return {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}


SCRIPT = """
from pathlib import Path
from dataclasses import replace
from tests.train.small import small
def experiment():
    return small(Path({model!r}), steps=400, eval_every=0, checkpoint_every=0)
"""


def command(out: Path, script: Path) -> list[str]:
    return [sys.executable, "-m", "agentrl.cli", "train", f"{script}:experiment", "--out", str(out)]


def wait_for_batches(out: Path, count: int) -> None:
    """Until the run has told of so many batches; the test's own time limit ends a wait in vain."""
    while not (out / "metrics.jsonl").exists() or (out / "metrics.jsonl").read_text().count("\n") < count:
        time.sleep(0.05)


@pytest.mark.timeout(120)
def test_ctrl_c_once_saves_and_twice_stops(warm: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(model=str(warm)))
    out = tmp_path / "run"
    first = subprocess.Popen(command(out, script), cwd=ROOT, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    wait_for_batches(out, 3)
    first.send_signal(signal.SIGINT)
    _, said = first.communicate()
    assert first.returncode == 130, said.decode()[-2000:]
    assert "Traceback" not in said.decode()
    saved = Run.find(out).checkpoints("searcher")
    assert saved, "the first Ctrl-C saves a checkpoint"
    second = subprocess.Popen(command(out, script), cwd=ROOT, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    before = (out / "metrics.jsonl").read_text().count("\n")
    wait_for_batches(out, before + 2)
    second.send_signal(signal.SIGINT)
    second.send_signal(signal.SIGINT)
    _, said = second.communicate()
    assert second.returncode in (130, -signal.SIGINT), said.decode()[-2000:]
    with Run.find(out).store(read_only=True) as store:
        assert sum(1 for _ in store.steps("searcher")) >= 3


def test_metrics_say_what_was_lost_and_why(warm: Path, tmp_path: Path) -> None:
    seen: list[StepMetrics] = []
    said: list[str] = []

    class Sink:
        def write(self, metrics: StepMetrics) -> None:
            seen.append(metrics)

        def note(self, text: str) -> None:
            said.append(text)

        def close(self) -> None: ...

    experiment = small(warm, steps=1, workflow=sometimes_raises, eval_every=0)
    asyncio.run(train(experiment, out=tmp_path / "run", sinks=[Sink()]))
    values = seen[-1].values
    assert values["episodes/lost"] == values["lost/workflow"] > 0
    assert values["episodes/done"] + values["episodes/lost"] == 8
    assert len(said) == 1 and "of 8 episodes lost (workflow)" in said[0] and "KeyError" in said[0]


@workflow(Agent("searcher"))
async def wants_a_sandbox(task: object, team: Team) -> str:
    async with team.sandbox():
        return ""


@pytest.mark.parametrize("eval_every", [0, 1])
def test_a_run_whose_every_episode_is_lost_by_its_set_up_ends(warm: Path, tmp_path: Path, eval_every: int) -> None:
    experiment = small(warm, steps=1, workflow=wants_a_sandbox, eval_every=eval_every)
    with pytest.raises(UserError, match=r"of \d episodes lost \(user\).*this experiment has no sandbox"):
        asyncio.run(train(experiment, out=tmp_path / "run"))


def test_an_evaluation_of_the_demonstrations_themselves_is_called_so(
    warm: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(replace(warm_up(warm, steps=1), eval_every=1, eval_tasks=2), tmp_path / "run")
    assert "that of the demonstrations, not of the policy" in caplog.text
