"""The command line, from outside: what it prints, what it keeps, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentrl.cli import main, make_parser
from agentrl.metrics import read_metrics
from agentrl.store.sqlite import SQLiteStore
from agentrl_workflows.search_qa.model import make_model

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tools", ROOT / "workflows", ROOT / "sandboxes"))),
    "OMP_NUM_THREADS": "1",
    "COLUMNS": "120",
}
SKY = '''
from __future__ import annotations
from dataclasses import dataclass
from pathlib import Path
from agentrl import Agent, Experiment, Policy, Team, workflow
from agentrl.engines import Demonstrations
from agentrl.objectives import NLL
from agentrl.rollout import Independent

@dataclass(frozen=True)
class Question:
    text: str
    answer: str = ""

async def search(query: str) -> str:
    """Search."""
    return "the sky is blue"

@workflow(Agent("searcher", tools=[search], max_turns=3, max_tokens=24))
async def answer(task: Question, team: Team) -> str:
    return (await team["searcher"].run(task.text)).text

def right(task, output, episode):
    return float(output.strip() == task.answer)

def respond(prompt, rng):
    return "blue" if "<|tool|>" in prompt else "<search>sky</search>"

def sky():
    tasks = tuple(Question(f"which colour, {n}?", "blue") for n in range(8))
    return Experiment(answer, reward=right, tasks=tasks, held_out=tasks[:2], rollout=Independent(2), threads=1, steps=2,
                      policies=Policy("searcher", model=Path(__file__).parent / "model", parser="tags"), tasks_per_step=2,
                      eval_every=1, checkpoint_every=1)

def shown():
    from dataclasses import replace
    return replace(sky(), engine=Demonstrations(respond), objective=NLL())

@workflow(Agent("searcher", max_turns=1, max_tokens=4))
async def outside(task: Question, team: Team) -> str:
    async with team.sandbox() as box:
        await team["searcher"].run(task.text)
        return (await box.exec(["test", "-e", __file__])).ok

def sandboxed():
    from dataclasses import replace
    from agentrl_sandboxes.process import Process
    return replace(shown(), workflow=outside, reward=None, sandbox=Process(warm=0))

def broken():
    return 1 / 0
'''


def run(folder: Path, *arguments: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """`agentrl ARGUMENTS` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "agentrl.cli", *arguments],
        cwd=folder, env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, a user's file, and a run of two steps."""
    folder = tmp_path_factory.mktemp("place")
    make_model(folder / "model", hidden=32, layers=1, heads=2, head_dim=16, ff=32)
    (folder / "sky.py").write_text(SKY)
    done = run(folder, "train", "sky.py:shown", "--out", "run", "--set", "policies.optimiser.lr=0.001", "--tensorboard")
    (folder / "train.txt").write_text(done.stdout)
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same folder as working directory, for commands that run in this process."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "120")
    yield place
    for name in ("sky", "changed"):
        sys.modules.pop(name, None)


def an_episode(folder: Path, split: str) -> str:
    with SQLiteStore(folder / "run" / "store.db", read_only=True) as store:
        return next(head.id for head in store.heads() if head.split == split)


# --- train ----------------------------------------------------------------------------------------------------------------
def test_train_leaves_a_whole_run(place: Path) -> None:
    folder = place / "run"
    assert {"experiment.json", "store.db", "metrics.jsonl", "curve.png", "tensorboard"} <= {
        path.name for path in folder.iterdir()
    }
    described = json.loads((folder / "experiment.json").read_text())
    assert described["target"] == f"{place.resolve() / 'sky.py'}:shown"
    assert described["settings"] == ["policies.optimiser.lr=0.001"]
    assert described["experiment"]["policies"]["optimiser"]["lr"] == 0.001
    assert [metrics.step for metrics in read_metrics(folder / "metrics.jsonl")] == [0, 1, 2]
    assert len(list((folder / "checkpoints" / "searcher").iterdir())) == 2


def test_train_prints_readable_lines_into_a_log(place: Path) -> None:
    log = (place / "train.txt").read_text()
    assert "\x1b" not in log
    assert [line.split()[0] for line in log.splitlines() if "/2 " in line] == ["0/2", "1/2", "2/2"]
    assert "held-out success" in log
    assert "policy searcher: run/checkpoints/searcher/step-000002" in log


def test_train_of_another_experiment_in_the_same_folder_is_refused(place: Path) -> None:
    done = run(place, "train", "sky.py:shown", "--out", "run", "--credit", "gigpo", code=1)
    assert "run holds a run of another experiment" in done.stderr
    assert "credit: agentrl.credit.grpo:GRPO -> agentrl.credit.gigpo:GiGPO" in done.stderr
    assert len(done.stderr.splitlines()) == 1


# --- the others -------------------------------------------------------------------------------------------------------------
def test_view_lists_the_episodes_of_a_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", "run", "--split", "train", "--status", "done"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["episode", "split", "step", "status"]
    assert len(lines) == 1 + 2 * 2 * 2
    assert all(line.split()[1:4:2] == ["train", "done"] for line in lines[1:])


def test_view_says_that_it_shows_the_last_ones_only(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", "run", "--split", "train", "-n", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[-1] == "the last 3 of 8; -n 8 shows all"


def test_view_shows_an_episode_as_a_tree(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", "run", an_episode(here, "train"), "--context"]) == 0
    shown = capsys.readouterr().out
    assert "<search>sky</search>" in shown
    assert '→ search(query="sky")' in shown
    assert "the sky is blue" in shown
    assert "┆ <|user|>which colour" in shown
    assert "stops searcher: answered" in shown


def test_replay_needs_no_model_and_is_equal(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "run", an_episode(here, "train")]) == 0
    assert capsys.readouterr().out.rstrip().endswith("the replay is equal to the record")


def test_a_replay_that_differs_from_the_record_fails(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "changed.py").write_text(SKY.replace("run(task.text)", 'run("another question")'))
    assert main(["replay", "run", an_episode(here, "train"), "--target", "changed.py:shown"]) == 1
    assert "the replay differs from the record: status: 'done' and 'divergent'" in capsys.readouterr().err


def test_a_fork_goes_on_live_and_is_kept(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    origin = an_episode(here, "train")
    assert main(["replay", "run", origin, "--fork", "1"]) == 0
    shown = capsys.readouterr().out
    assert f"fork of {origin}" in shown
    with SQLiteStore(here / "run" / "store.db", read_only=True) as store:
        fork = next(head for head in store.heads() if head.fork_of == origin)
        first, second = store.episode(fork.id).turns
        assert first.sampled_ids.tolist() == store.episode(origin).turns[0].sampled_ids.tolist()
    assert "blue" in second.text


def test_rollout_prints_trees_and_keeps_episodes_if_asked(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = '{"text": "what is above?", "answer": "blue"}'
    assert main(["rollout", "sky.py:shown", "-n", "2", "--task", task, "--out", "kept"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("what is above?") == 2
    assert "reward" in shown
    assert main(["view", "kept"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_eval_tells_success_on_held_out_tasks(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "sky.py:shown"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "success 1.000 over 2 episodes",
        "2.00 turns and 1.00 tool calls an episode",
    ]


def test_eval_takes_the_weights_of_a_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "sky.py:sky", "--run", "run", "--set", "eval_tasks=1"]) == 0
    assert "over 1 episodes" in capsys.readouterr().out


def test_doctor_of_a_run_is_well(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--run", "run"]) == 0
    told = capsys.readouterr().out
    assert "ok  store" in told
    assert "the newest is whole" in told


def test_doctor_fails_where_there_is_a_problem(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--run", "nowhere"]) == 1
    assert "NO  run" in capsys.readouterr().out


# --- how it fails -----------------------------------------------------------------------------------------------------------
MISTAKES = [
    (["train", "sky.py:skyy", "--out", "x"], "sky.py has no 'skyy'; did you mean sky?"),
    (["train", "sky.py:answer", "--out", "x"], "is a workflow; name the function that returns an Experiment"),
    (["train", "sky.py:Question", "--out", "x"], "sky.py:Question failed: TypeError"),
    (["train", "sky.py:broken", "--out", "x"], "sky.py:broken failed: ZeroDivisionError: division by zero"),
    (["train", "json:decoder.NaN", "--out", "x"], "gives float; it must be an Experiment"),
    (["train", "sky.py:sky", "--out", "x", "--credit", "spo"], "Segment Policy Optimization"),
    (["eval", "sky.py:sky", "--set", "policies.modle=x"], "did you mean model"),
    (["eval", "sky.py:sky", "--run", "x"], "x is neither a run nor a model folder"),
    (["rollout", "sky.py:sky", "--task", "{"], "--task must be JSON, got '{'"),
    (["rollout", "sky.py:sky", "-n", "0"], "-n must be at least 1, got 0"),
    (["view", "nowhere"], "there is no store at"),
    (["view", "run", "s00"], "no episode 's00'"),
    (["replay", "nowhere", "e"], "nowhere holds no run"),
    (["replay", "run", "none"], "no episode 'none'"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[" ".join(arguments) for arguments, _ in MISTAKES])
def test_a_failure_is_one_clear_line(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.startswith("agentrl: ")
    assert len(said.err.splitlines()) == 1
    assert not (here / "x").exists()


def test_a_failure_in_a_process_of_its_own_ends_with_1_and_no_traceback(place: Path) -> None:
    done = run(place, "train", "sky.py:broken", "--out", "x", code=1)
    assert done.stderr == "agentrl: sky.py:broken failed: ZeroDivisionError: division by zero\n"


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [(["--debug", "view", "nowhere"], {}), (["view", "nowhere", "--debug"], {}), (["view", "nowhere"], {"AGENTRL_DEBUG": "1"})],
    ids=["before", "behind", "variable"],
)
def test_debugging_shows_where_it_failed(place: Path, arguments: list[str], environment: dict[str, str]) -> None:
    done = run(place, *arguments, code=1, **environment)
    assert "Traceback" in done.stderr
    assert "there is no store at" in done.stderr


def test_a_wrong_command_line_ends_with_2(place: Path) -> None:
    assert "required: --out" in run(place, "train", "sky.py:sky", code=2).stderr
    assert "invalid choice: 'fly'" in run(place, "fly", code=2).stderr
    assert "not allowed with" in run(place, "eval", "sky.py:sky", "--run", "a", "--policies", "b", code=2).stderr


def test_a_reader_that_has_seen_enough_is_no_failure(place: Path) -> None:
    command = [sys.executable, "-m", "agentrl.cli", "view", "run"]
    child = subprocess.Popen(command, cwd=place, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.close()
    assert child.stderr is not None
    errors = child.stderr.read()
    child.stderr.close()
    assert (child.wait(), errors) == (0, b"")


# --- signals ----------------------------------------------------------------------------------------------------------------
def test_ctrl_c_once_saves_and_the_same_command_goes_on(place: Path) -> None:
    command = ["train", "sky.py:shown", "--out", "long", "--set", "eval_every=0"]
    child = subprocess.Popen(
        [sys.executable, "-m", "agentrl.cli", *command, "--set", "steps=5000"],
        cwd=place, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    while "1/5000" not in (line := child.stdout.readline()):
        assert line, child.stderr.read() if child.stderr else ""
    child.send_signal(signal.SIGINT)
    out, errors = child.communicate(timeout=60)
    assert child.returncode == 130, errors
    assert "stopping: the step under way is finished and saved" in out
    assert "the same command goes on from there" in out
    (saved,) = [metrics.step for metrics in read_metrics(place / "long" / "metrics.jsonl")][-1:]
    assert (place / "long" / "checkpoints" / "searcher" / f"step-{saved:06d}").is_dir()
    run(place, *command, "--set", f"steps={saved + 1}")
    assert [metrics.step for metrics in read_metrics(place / "long" / "metrics.jsonl")] == list(range(1, saved + 2))


STUBBORN = """
import asyncio, sys, time
from agentrl.cli.signals import interruptible

async def work(stop):
    print("ready", flush=True)
    await stop.wait()
    print("asked", flush=True)
    if sys.argv[1] == "task":
        await asyncio.Event().wait()
    else:
        await asyncio.to_thread(time.sleep, 1000)

code, result = interruptible(work, lambda text: print(text, flush=True))
assert result is None
sys.exit(code)
"""


@pytest.mark.parametrize("kind", ["task", "thread"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_even_what_does_not_listen(kind: str, number: signal.Signals, code: int) -> None:
    child = subprocess.Popen([sys.executable, "-c", STUBBORN, kind], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(number)
    assert {child.stdout.readline().partition(":")[0].strip() for _ in range(2)} == {"asked", "stopping"}
    child.send_signal(number)
    assert "stopped at once" in child.communicate(timeout=30)[0]
    assert child.returncode == code


def test_ctrl_c_in_other_commands_ends_with_130(place: Path) -> None:
    (place / "slow.py").write_text("import time\nprint('begun', flush=True)\ntime.sleep(1000)\n")
    command = [sys.executable, "-m", "agentrl.cli", "eval", "slow.py:x"]
    child = subprocess.Popen(command, cwd=place, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "begun\n"
    child.send_signal(signal.SIGINT)
    assert child.communicate(timeout=30)[1] == "agentrl: interrupted\n"
    assert child.returncode == 130


# --- light ------------------------------------------------------------------------------------------------------------------
def test_help_needs_nothing_beyond_the_standard_library_and_our_own_modules() -> None:
    code = (
        "import sys, agentrl; before = set(sys.modules)\n"
        "from agentrl.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as ended: assert ended.code == 0\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "sys.stderr.write(repr(sorted(new - set(sys.stdlib_module_names) - {'agentrl'})))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stderr == "[]"


def test_every_command_is_told_in_the_manual() -> None:
    manual = (ROOT / "docs" / "commands.md").read_text()
    parser = make_parser()
    (commands,) = [action.choices for action in parser._actions if action.dest == "command"]
    assert commands is not None
    for name, command in commands.items():
        assert f"agentrl {name} " in manual
        for action in command._actions:
            for option in action.option_strings:
                assert option in ("-h", "--help") or f"`{option}" in manual, f"{name} {option} is not in docs/commands.md"


def test_unsafe_local_is_named_and_warns(place: Path) -> None:
    done = run(place, "rollout", "sky.py:sandboxed", "-n", "1", "--unsafe-local")
    assert "isolates NOTHING" in done.stderr
    assert "output true" in done.stdout  # the host's files are there
    assert "sandbox is None" in run(place, "rollout", "sky.py:shown", "--unsafe-local", code=1).stderr
