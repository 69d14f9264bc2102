"""The coding workflow: its problems, its demonstrations, and what its hidden tests say, in a real sandbox."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentrl import Agent, Experiment, Policy, evaluate, workflow
from agentrl.engines import Demonstrations
from agentrl.episode import Episode
from agentrl.errors import SandboxError, UserError
from agentrl.rendering.template import TemplateRenderer
from agentrl.sandbox import Command, SandboxLimits
from agentrl_sandboxes.process import Process
from agentrl_workflows.code_tests import demonstrator as script
from agentrl_workflows.code_tests.experiment import code_tests, warm_up
from agentrl_workflows.code_tests.model import make_model, words
from agentrl_workflows.code_tests.pipelines import (
    READINGS,
    STAGES,
    TRIAL,
    held_out_problems,
    outcome,
    readings,
    source,
    train_problems,
)
from agentrl_workflows.code_tests.problems import Problem, program_of
from agentrl_workflows.code_tests.rehearsal import Rehearsal
from agentrl_workflows.code_tests.workflow import all_pass, solve_small


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("code_tests") / "model")


def words_of(problem: Problem) -> tuple[str, ...]:
    return tuple(problem.text.rpartition("\n")[2].split(", "))


# --- problems -------------------------------------------------------------------------------------------------------------


def test_equal_seeds_make_equal_problems() -> None:
    assert train_problems(30, seed=3) == train_problems(30, seed=3) != train_problems(30, seed=4)


def test_no_training_problem_has_the_words_of_a_held_out_one() -> None:
    train = {words_of(problem) for problem in train_problems(3000)}
    test = [problem for problem in held_out_problems(300) if problem.kind != "1 stage"]
    assert len(test) == 200
    assert not train & {words_of(problem) for problem in test}


def test_one_reading_at_least_gives_what_a_problem_says_and_one_does_not() -> None:
    for problem in train_problems(60):
        names: dict[str, Any] = {}
        exec(problem.setup, names)
        said = [names["u"], names["v"]]
        made = [[outcome(program, names[name]) for name in "ab"] == said for program in readings(words_of(problem))]
        assert any(made), problem.text
        assert not all(made), problem.text
        assert len(problem.calls) == len(problem.expected) == 8


def test_every_stage_is_the_python_that_it_says() -> None:
    for stage in STAGES:
        names: dict[str, Any] = {}
        exec(source((stage,)), names)
        assert names["f"]([3, 1, 4]) == outcome((stage,), [3, 1, 4])


def test_a_reply_is_its_last_block_of_code_or_all_of_it() -> None:
    assert program_of("def f(x):\n    return x") == "def f(x):\n    return x"
    assert program_of("First\n```python\na = 1\n```\nthen\n```\nb = 2\n```\nso.") == "b = 2\n"


@pytest.mark.parametrize("count, stages", [(0, (1,)), (1, ()), (1, (4,)), (1, (0, 1))])
def test_problems_that_are_none_are_refused(count: int, stages: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=f"at least one problem of 1 to 3 stages, got count={count}, stages="):
        train_problems(count, stages=stages)


# --- the model's words ----------------------------------------------------------------------------------------------------


def test_every_line_and_number_of_a_problem_is_one_token(model: Path) -> None:
    renderer = TemplateRenderer.from_folder(model, parser="tags")
    for stage in STAGES:
        assert len(renderer.encode(f"    x = {stage}\n")) == 1
    pieces = set(words())
    assert pieces >= {*READINGS, TRIAL, *map(str, range(100))}
    assert len(renderer.encode(source(STAGES[:2]) + TRIAL)) == 5


# --- demonstrations -------------------------------------------------------------------------------------------------------


def tried(first: str, *outputs: str, skill: float = 1.0, seed: int = 0) -> list[str]:
    """What the demonstrator says to a problem, one reply for each output and one more."""
    prompt, replies, rng = f"<|user|>{first}<|assistant|>", [], random.Random(seed)
    for output in (*outputs, ""):
        replies.append(script.demonstrator(skill)(prompt, rng))
        prompt += f"{replies[-1]}<|end|><|tool|>{output}<|assistant|>"
    return replies


def test_a_skilled_demonstrator_tries_every_reading_once_and_answers_with_the_right_one() -> None:
    problem = next(problem for problem in train_problems(9) if problem.kind == "2 stages")
    replies = tried(problem.text, "(False, False)", "(True, False)", "(False, True)")
    assert len({*replies}) == 4
    assert {reply.removeprefix(script.OPEN).partition(TRIAL)[0] for reply in replies} == {
        *map(source, readings(words_of(problem)))
    }
    assert tried(problem.text, "(False, False)", "(True, True)")[-1] == replies[1].removeprefix(script.OPEN).partition(TRIAL)[0]


def test_a_demonstrator_gives_up_after_its_tries() -> None:
    *tries, answer = tried(train_problems(1)[0].text, *["(False, False)"] * script.TRIES, skill=0.0)
    assert len(tries) == script.TRIES
    assert answer == tries[-1].removeprefix(script.OPEN).partition(TRIAL)[0]


def test_a_demonstrator_refuses_what_it_cannot_read() -> None:
    with pytest.raises(UserError, match="a prompt that ends with known words, got 'sort this'"):
        tried("sort this")
    with pytest.raises(UserError, match="skill is a probability, got 2"):
        script.demonstrator(2)


async def shown(experiment: Experiment[Any, Any], tasks: list[Problem]) -> list[Episode]:
    found = await evaluate(experiment, tasks=tasks)
    return [group.episodes[0] for group in found.groups]


async def test_a_rehearsal_gives_what_the_real_sandbox_gives(model: Path) -> None:
    tasks = train_problems(12, seed=5)
    warm = warm_up(model, skill=0.5)
    rehearsed, real = await shown(warm, tasks), await shown(replace(warm, sandbox=Process(warm=2)), tasks)

    def told(episode: Episode) -> Any:
        return [(turn.text, [(made.status, made.output) for made in turn.tool_calls]) for turn in episode.turns]

    assert [told(episode) for episode in rehearsed] == [told(episode) for episode in real]
    assert [(e.status, e.output, e.reward) for e in rehearsed] == [(e.status, e.output, e.reward) for e in real]
    assert {episode.reward for episode in real} == {0.0, 1.0}


@pytest.mark.parametrize(
    "code",
    [
        "import os",
        source(("sorted(x)",)).replace("sorted", "print"),
        source(("sorted(x)",)) + "\nimport os",
        "import os\n" + source(("sorted(x)",)),
        "",
    ],
)
async def test_a_rehearsal_runs_nothing_but_known_lines(code: str) -> None:
    session = await Rehearsal().session(SandboxLimits())
    with pytest.raises(SandboxError, match="a rehearsal runs programs of 'def f\\(x\\):' and known lines alone, got"):
        await session.python(code + TRIAL)
    with pytest.raises(SandboxError, match="a rehearsal runs tests alone, got"):
        await session.exec(Command(("python3", "-c", code or "pass")))


# --- the workflow ---------------------------------------------------------------------------------------------------------


async def attempted(model: Path, respond: Callable[[str, random.Random], str], problem: Problem) -> Episode:
    """One episode in the real sandbox, of a policy that is a script."""
    roomy = workflow(Agent("coder", max_turns=4, max_tokens=512))(solve_small.function)  # bytes are many tokens
    experiment = replace(code_tests(model), workflow=roomy, engine=Demonstrations(respond), sandbox=Process(warm=0))
    (episode,) = await shown(experiment, [problem])
    return episode


PROBLEM = Problem("Double.", "a, u = 1, 2\nb, v = 3, 6", calls=("f(2)", "f([1])"), expected=("4", "[1, 1]"))
DOUBLE = "def f(x):\n    return 2 * x"


async def test_code_is_run_then_judged_by_hidden_tests(model: Path) -> None:
    replies = iter([f"<python>{DOUBLE}{TRIAL}</python>", "<python>g</python>", DOUBLE])
    episode = await attempted(model, lambda prompt, rng: next(replies), PROBLEM)
    outputs = [made.output for turn in episode.turns for made in turn.tool_calls]
    assert outputs == ["(True, True)", "NameError: name 'g' is not defined\n[exit status 1]"]
    assert (episode.output, episode.reward) == ({"passed": 2, "of": 2}, 1.0)


async def test_a_program_that_passes_some_tests_earns_nothing(model: Path) -> None:
    episode = await attempted(model, lambda prompt, rng: "def f(x):\n    return 4", PROBLEM)
    assert (episode.output, episode.reward) == ({"passed": 1, "of": 2}, 0.0)


async def test_an_agent_that_never_answers_fails_its_tests(model: Path) -> None:
    episode = await attempted(model, lambda prompt, rng: f"<python>{rng.random()}</python>", PROBLEM)
    assert (episode.status, episode.output, episode.reward) == ("done", {"passed": 0, "of": 2}, 0.0)


async def test_a_check_meets_nothing_that_the_agent_left_running(model: Path) -> None:
    watcher = "import os, time\nif not os.fork():\n    open('seen', 'w')\n    time.sleep(100)"
    check = "def check(candidate):\n    import os\n    assert not os.path.exists('seen') and candidate() == 1"
    replies = iter([f"<python>{watcher}</python>", "def f():\n    return 1"])
    problem = Problem("One.", entry="f", check=check)
    episode = await attempted(model, lambda prompt, rng: next(replies), problem)
    assert (episode.output, episode.reward) == ({"passed": 1, "of": 1}, 1.0)


def test_the_reward_is_for_all_tests_alone() -> None:
    class Nothing: ...

    assert [all_pass(PROBLEM, {"passed": n, "of": 2}, Nothing()) for n in (0, 1, 2)] == [0.0, 0.0, 1.0]  # type: ignore[arg-type]


def test_a_step_of_each_phase_trains(model: Path, tmp_path: Path) -> None:
    from agentrl import train

    small: dict[str, Any] = {"tasks_per_step": 4, "held_out": held_out_problems(4), "checkpoint_every": 1}
    warm = asyncio.run(train(replace(warm_up(model, steps=2, skill=1.0), **small), out=tmp_path / "warm"))
    experiment = replace(code_tests(warm.policies["coder"], steps=1), sandbox=Process(warm=2), **small)
    learned = asyncio.run(train(experiment, out=tmp_path / "rl"))
    assert learned.batches == 1
    assert (tmp_path / "rl" / "checkpoints" / "coder" / "step-000001" / "config.json").is_file()


def test_the_policy_of_the_experiment_is_the_model_that_warms_itself_up() -> None:
    assert code_tests().by_name == {"coder": replace(code_tests().by_name["coder"], model="code_tests")}
    assert isinstance(code_tests().policies, Policy)
    assert code_tests().workflow is solve_small
