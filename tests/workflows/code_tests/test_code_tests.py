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
    HIDDEN,
    READINGS,
    STAGES,
    TRIAL,
    held_out_problems,
    lookup,
    outcome,
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


def test_the_notes_of_a_problem_lead_to_its_example_and_to_its_hidden_tests() -> None:
    for problem in train_problems(60):
        names: dict[str, Any] = {}
        exec(problem.setup, names)
        program = tuple(names["notes"][word] for word in words_of(problem))
        exec(source(program), names)
        assert names["f"](names["a"]) == names["u"]
        assert [repr(eval(call, names)) for call in problem.calls] == list(problem.expected)
        assert len(problem.calls) == HIDDEN


def test_both_readings_of_every_word_occur() -> None:
    found = {meaning for problem in train_problems(60) for meaning in STAGES if repr(meaning) in problem.setup}
    assert found == set(STAGES)


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
    for word, meanings in READINGS.items():
        assert len(renderer.encode(lookup(word))) == 1
        for stage in meanings:
            assert len(renderer.encode(f"    x = {stage}\n")) == len(renderer.encode(repr(stage))) == 1
    assert set(words()) >= {*READINGS, TRIAL, *map(str, range(100))}
    assert len(renderer.encode(source(STAGES[:2]) + TRIAL)) == 5


# --- demonstrations -------------------------------------------------------------------------------------------------------

ASKED = "a, u = [3, 8, 5, 1], 5\nthe odd ones, the last"


def replies_to(*outputs: str, skill: float = 1.0, asked: str = ASKED, seed: int = 0) -> list[str]:
    """What the demonstrator says, one reply for each output and one more."""
    prompt, replies, rng = f"<|user|>{asked}<|assistant|>", [], random.Random(seed)
    for output in (*outputs, ""):
        replies.append(script.demonstrator(skill)(prompt, rng))
        prompt += f"{replies[-1]}<|end|><|tool|>{output}<|assistant|>"
    return replies


def test_a_skilled_demonstrator_looks_up_then_tries_then_answers() -> None:
    program = source(("x[::2]", "max(x)"))
    assert replies_to("'x[::2]'", "'max(x)'", "True") == [
        f"<python>{lookup('the odd ones')}</python>",
        f"<python>{lookup('the last')}</python>",
        f"<python>{program}{TRIAL}</python>",
        program,
    ]


def test_without_skill_every_valid_thing_is_done() -> None:
    first = {replies_to(skill=0.0, seed=seed)[0] for seed in range(200)}
    lookups = {f"<python>{lookup(word)}</python>" for word in ("the odd ones", "the last")}
    programs = {source((one, two)) for one in READINGS["the odd ones"] for two in READINGS["the last"]}
    assert first == lookups | programs | {f"<python>{program}{TRIAL}</python>" for program in programs}


def test_a_demonstrator_refuses_what_it_cannot_read() -> None:
    with pytest.raises(UserError, match="a prompt that ends with known words, got 'sort this'"):
        replies_to(asked="sort this")
    with pytest.raises(UserError, match=r"are probabilities, got skill=0.6, haste=2"):
        script.demonstrator(0.6, 2)


def test_in_haste_it_answers_with_a_guess() -> None:
    prompt = f"<|user|>{ASKED}<|assistant|>"
    first = {script.demonstrator(0.0, 1.0)(prompt, random.Random(seed)) for seed in range(100)}
    assert first == {source((one, two)) for one in READINGS["the odd ones"] for two in READINGS["the last"]}


async def shown(experiment: Experiment[Any, Any], tasks: list[Problem]) -> list[Episode]:
    found = await evaluate(experiment, tasks=tasks)
    return [group.episodes[0] for group in found.groups]


async def test_a_rehearsal_gives_what_the_real_sandbox_gives(model: Path) -> None:
    tasks = train_problems(12, seed=5)
    warm = warm_up(model, skill=0.4, haste=0.0)
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


PROBLEM = Problem("Double.", "a, u = 1, 2", calls=("f(2)", "f([1])"), expected=("4", "[1, 1]"))
DOUBLE = "def f(x):\n    return 2 * x"


async def test_code_is_run_then_judged_by_hidden_tests(model: Path) -> None:
    replies = iter([f"<python>{DOUBLE}{TRIAL}</python>", "<python>g</python>", DOUBLE])
    episode = await attempted(model, lambda prompt, rng: next(replies), PROBLEM)
    outputs = [made.output for turn in episode.turns for made in turn.tool_calls]
    assert outputs == ["True", "NameError: name 'g' is not defined\n[exit status 1]"]
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
    warm = asyncio.run(train(replace(warm_up(model, steps=2, skill=1.0, haste=0.0), **small), out=tmp_path / "warm"))
    experiment = replace(code_tests(warm.policies["coder"], steps=1), sandbox=Process(warm=2), **small)
    learned = asyncio.run(train(experiment, out=tmp_path / "rl"))
    assert learned.batches == 1
    assert (tmp_path / "rl" / "checkpoints" / "coder" / "step-000001" / "config.json").is_file()


def test_the_policy_of_the_experiment_is_the_model_that_warms_itself_up() -> None:
    assert code_tests().by_name == {"coder": replace(code_tests().by_name["coder"], model="code_tests")}
    assert isinstance(code_tests().policies, Policy)
    assert code_tests().workflow is solve_small
