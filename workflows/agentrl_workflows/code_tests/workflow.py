"""The workflow: an agent writes and runs code over several turns, then answers with a program, which hidden tests judge."""

from __future__ import annotations

from collections.abc import Sequence

from agentrl import Agent, Episode, Team, workflow
from agentrl_tools.python import Python
from agentrl_tools.tests import Result, run_tests
from agentrl_workflows.code_tests.problems import Problem, program_of

SYSTEM = """You write Python. Try your code with the tool `python` before you answer: names last from call to call.
Then answer with the whole program in one ```python block."""
Passed = dict[str, int]


async def attempt(task: Problem, team: Team, *, brief: bool) -> Passed:
    """One attempt: how many of the hidden tests the answer passes. `brief` as for `Python`."""
    async with team.sandbox() as box:
        if task.setup:
            await box.python(task.setup)
        reply = await team["coder"].run(task.text, tools=[Python(box, brief=brief)])
        if reply.stop != "answered":
            return {"passed": 0, "of": len(task.tests)}
        program = task.given + program_of(reply.text)
        if not task.check:
            return counted(await run_tests(box, program, task.tests))
    async with team.sandbox() as box:  # a check goes in: nothing that the agent left running shall meet it
        return counted(await run_tests(box, program, task.tests))


def counted(results: Sequence[Result]) -> Passed:
    """How many passed."""
    return {"passed": sum(result.passed for result in results), "of": len(results)}


@workflow(Agent("coder", max_turns=6, max_tokens=12))
async def solve_small(task: Problem, team: Team) -> Passed:
    """For the tiny model: a turn is a few tokens, and of a traceback it reads the last line."""
    return await attempt(task, team, brief=True)


@workflow(Agent("coder", system=SYSTEM, max_turns=6, max_tokens=512))
async def solve(task: Problem, team: Team) -> Passed:
    """For models that can write."""
    return await attempt(task, team, brief=False)


def all_pass(task: Problem, output: Passed, episode: Episode) -> float:
    """1 for a program that passes every hidden test, else 0."""
    return float(output["passed"] == output["of"])
