"""A workflow that no longer asks for what the record holds is told so, with branch, effect and both requests."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentrl.effect import Effect
from agentrl.store.contract import EpisodeTail
from tests.runtime.harness import play

Program = list[Any]  # of steps: a tag is an effect, a dict of programs is a group of tasks by name

TAGS = st.sampled_from("abcdef")
PROGRAMS = st.recursive(
    st.lists(TAGS, min_size=1, max_size=4),
    lambda inner: st.lists(
        TAGS | st.dictionaries(st.sampled_from(["x", "y", "z"]), inner, min_size=1, max_size=3), min_size=1, max_size=3
    ),
    max_leaves=6,
)


async def echo(tag: str) -> str:
    await asyncio.sleep(0)
    return tag


async def run(program: Program, team: Any) -> Any:
    given = []
    for step in program:
        if isinstance(step, str):
            given.append(team.reward(1.0, name=step) if step == "f" else await team.effect(f"effect {step}", echo, step))
        else:
            async with asyncio.TaskGroup() as tasks:
                began = [tasks.create_task(run(inner, team), name=name) for name, inner in step.items()]
            given.append([task.result() for task in began])
    return given


async def replayed(program: Program, record: tuple[Effect, ...]) -> EpisodeTail:
    return (await play(lambda task, team: run(program, team), record, mode="replay"))[1]


def places(program: Program) -> list[tuple[Program, int]]:
    """Every step of a program, with the list that holds it."""
    found = []
    for i, step in enumerate(program):
        found.append((program, i))
        if not isinstance(step, str):
            for inner in step.values():
                found += places(inner)
    return found


def copied(program: Program) -> Program:
    return [step if isinstance(step, str) else {name: copied(inner) for name, inner in step.items()} for step in program]


def mutated(program: Program, kind: str, n: int) -> Program:
    """One thing changed; the same program if there is nothing of that kind."""
    program = copied(program)
    found = places(program)
    holder, i = found[n % len(found)]
    step = holder[i]
    if kind == "request" and isinstance(step, str):
        holder[i] = "g"
    elif kind == "branch" and not isinstance(step, str):
        holder[i] = {f"other {name}": inner for name, inner in step.items()}
    elif kind == "order" and i + 1 < len(holder):
        holder[i], holder[i + 1] = holder[i + 1], holder[i]
    elif kind == "drop":
        del holder[i]
    elif kind == "add":
        holder.insert(i + n % 2, "h")
    return program


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
@given(PROGRAMS, st.sampled_from(["request", "branch", "order", "drop", "add"]), st.integers(0, 100))
def test_a_changed_program_diverges(program: Program, kind: str, n: int) -> None:
    async def check() -> None:
        record, tail = await play(lambda task, team: run(program, team))
        assert tail.status == "done"
        other = mutated(program, kind, n)
        again = await replayed(other, record)
        if other == program:
            assert again.status == "done"
            return
        assert again.status == "divergent", (program, other)
        assert again.failure is not None
        assert again.failure.fault == "replay"
        assert "the record" in again.failure.message
        assert "the code" in again.failure.message

    asyncio.run(check())


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (["a", "g"], "the record holds effect 'effect b' at :1 ([\"b\"]), the code asks for effect 'effect g' at :1 ([\"g\"])"),
        (["a"], "the code ended; the record still holds effect 'effect b' at :1 ([\"b\"])"),
        (["a", "b", {"x": ["c"]}, "d"], "the record ends here, and the code goes on with effect 'effect d' at :2"),
        (["a", "b", {"y": ["c"]}], "the record holds effect 'effect c' at /x:0 ([\"c\"]), which the code never asks for"),
        (["a", "b", "f", {"x": ["c"]}], "the code records reward 'f' at :2 ("),
    ],
)
async def test_the_message_names_branch_effect_and_requests(code: Program, message: str) -> None:
    record, _ = await play(lambda task, team: run(["a", "b", {"x": ["c"]}], team))
    tail = await replayed(code, record)
    assert tail.failure is not None
    assert message in tail.failure.message


async def test_what_a_workflow_catches_cannot_hide_a_divergence() -> None:
    async def stubborn(task: Any, team: Any) -> str:
        try:
            await team.effect("effect b", echo, "b")
        except BaseException:  # noqa: BLE001 - the worst code there is
            return "all is well"
        return "ok"

    record, _ = await play(lambda task, team: run(["a"], team))
    _, tail = await play(stubborn, record, mode="replay")
    assert tail.status == "divergent"


async def test_a_resume_with_changed_code_diverges_too() -> None:
    record, _ = await play(lambda task, team: run(["a", "b"], team))
    _, tail = await play(lambda task, team: run(["a", "g", "c"], team), record)
    assert tail.status == "divergent"


async def test_an_effect_that_is_awaited_by_another_branch_diverges() -> None:
    record, _ = await play(lambda task, team: run([{"x": ["a"], "y": ["b"]}], team))
    tail = await replayed([{"x": ["b"], "y": ["a"]}], record)
    assert tail.failure is not None
    assert "the record holds effect 'effect a' at /x:0" in tail.failure.message
