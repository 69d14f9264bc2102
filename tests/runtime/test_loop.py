"""The episode's own event loop: what a workflow may ask of it, what it may not, and that order is the code's alone."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pytest

from agentrl.runtime.branch import Branch
from agentrl.team import Team
from tests.runtime.harness import play


async def echo(value: Any) -> Any:
    return value


async def keys(workflow: Callable[[Any, Team], Any]) -> list[str]:
    """Where the effects of a workflow were asked for."""
    effects, tail = await play(workflow)
    assert tail.status == "done", tail
    return [f"{effect.key.branch}:{effect.key.position}" for effect in effects]


async def message(workflow: Callable[[Any, Team], Any]) -> str:
    """How a workflow failed."""
    _, tail = await play(workflow)
    assert tail.status == "failed", tail
    assert tail.failure is not None
    assert tail.failure.fault == "workflow"
    return tail.failure.message


async def connect() -> None:
    await asyncio.open_connection("127.0.0.1", 1)


async def shell() -> None:
    await asyncio.create_subprocess_shell("true")


async def resolve() -> None:
    await asyncio.get_running_loop().getaddrinfo("localhost", 1)


async def reader() -> None:
    asyncio.get_running_loop().add_reader(0, print)


@pytest.mark.parametrize(
    ("raw", "name"),
    [(connect, "create_connection"), (shell, "subprocess_shell"), (resolve, "getaddrinfo"), (reader, "add_reader")],
)
async def test_raw_input_and_output_is_refused(raw: Callable[[], Any], name: str) -> None:
    async def workflow(task: Any, team: Team) -> None:
        await raw()

    said = await message(workflow)
    assert name in said or "getaddrinfo" in said
    assert "team.effect" in said


async def test_driving_the_loop_is_refused() -> None:
    async def workflow(task: Any, team: Team) -> None:
        asyncio.get_running_loop().stop()

    assert "loop.stop: the runtime drives this loop" in await message(workflow)


async def test_a_future_resolved_from_a_tool_is_refused() -> None:
    async def workflow(task: Any, team: Team) -> Any:
        future = asyncio.get_running_loop().create_future()

        async def poke() -> None:
            future.set_result(1)

        waiting = asyncio.create_task(asyncio.wait_for(future, 5))
        await asyncio.sleep(0)
        await team.effect("poke", poke)
        return await waiting

    assert "handed in from outside" in await message(workflow)


async def test_a_callback_from_a_thread_that_the_episode_did_not_begin_is_refused() -> None:
    async def workflow(task: Any, team: Team) -> Any:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        failed: list[Exception] = []

        def outside() -> None:
            try:
                loop.call_soon_threadsafe(future.set_result, 1)
            except Exception as error:  # noqa: BLE001
                failed.append(error)

        thread = threading.Thread(target=outside)
        await team.effect("begin", thread.start)
        await team.effect("join", thread.join)
        return await future

    assert "handed in from outside" in await message(workflow)


async def test_call_soon_threadsafe_inside_the_workflow_is_call_soon() -> None:
    async def workflow(task: Any, team: Team) -> Any:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        loop.call_soon_threadsafe(future.set_result, 1)
        return await future

    effects, tail = await play(workflow)
    assert (tail.output, len(effects)) == (1, 0)


async def test_the_team_is_refused_outside_the_workflow() -> None:
    async def workflow(task: Any, team: Team) -> Any:
        async def nested() -> Any:
            return await team.effect("inner", echo, 1)

        return await team.effect("outer", nested)

    assert "outside the workflow's own tasks" in await message(workflow)


async def test_the_team_is_refused_in_a_thread() -> None:
    async def workflow(task: Any, team: Team) -> Any:
        await asyncio.to_thread(team.reward, 1.0)

    assert "outside the workflow's own tasks" in await message(workflow)


async def test_branches_are_named_by_task_or_by_coroutine_and_ordinal() -> None:
    async def part(team: Team, value: int) -> None:
        await team.effect("e", echo, value)

    async def workflow(task: Any, team: Team) -> None:
        await part(team, 0)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(part(team, 1))
            tasks.create_task(part(team, 2), name="mine")
            tasks.create_task(part(team, 3))
            tasks.create_task(part(team, 4), name="mine")
            tasks.create_task(part(team, 5), name="a/b#1:2~3%")

    assert sorted(await keys(workflow)) == sorted(
        [":0", "/part#0:0", "/mine:0", "/part#1:0", "/mine~1:0", "/a%2Fb%231%3A2%7E3%25:0"]
    )


def test_a_branch_renamed_at_once_gives_back_its_ordinal() -> None:
    root = Branch("")
    first = root.child(None, "f")
    first.rename("name")
    second = root.child(None, "f")
    third = root.child(None, "f")
    second.rename("late")
    assert (first.path, second.path, third.path) == ("/name", "/late", "/f#1")
    assert root.child(None, "f").path == "/f#2"


async def test_names_never_collide() -> None:
    root = Branch("")
    paths = [root.child(*given).path for given in [("f", ""), (None, "f"), ("f", ""), ("f#0", ""), (None, "f"), ("f~1", "")]]
    assert len(set(paths)) == len(paths)


async def test_a_task_is_called_as_its_branch() -> None:
    async def workflow(task: Any, team: Team) -> Any:
        async def inner() -> str:
            current = asyncio.current_task()
            return current.get_name() if current else ""

        return [await asyncio.create_task(inner()), await asyncio.create_task(inner(), name="mine")]

    _, tail = await play(workflow)
    assert tail.output == ["/inner#0", "mine"]


async def test_as_completed_over_bare_coroutines_begins_them_in_order() -> None:
    async def part(team: Team, value: int) -> int:
        return await team.effect("e", echo, value)

    async def workflow(task: Any, team: Team) -> Any:
        return sorted([await each for each in asyncio.as_completed([part(team, value) for value in range(20)])])

    effects, _ = await play(workflow)
    asked = sorted((effect.issued, effect.key.branch, effect.note) for effect in effects)
    assert [note for _, _, note in asked] == [f"[{value}]" for value in range(20)]
    assert [branch for _, branch, _ in asked] == [f"/part#{value}" for value in range(20)]


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
async def test_as_completed_over_a_set_of_coroutines_is_refused() -> None:
    async def workflow(task: Any, team: Team) -> Any:
        for each in asyncio.as_completed({echo(value) for value in range(3)}):
            await each

    assert "give it a list" in await message(workflow)
    gc.collect()


async def test_sets_of_tasks_have_one_order() -> None:
    async def part(team: Team, value: int) -> int:
        return await team.effect("e", echo, value)

    async def workflow(task: Any, team: Team) -> Any:
        tasks = [asyncio.create_task(part(team, value)) for value in range(9)]
        done, _ = await asyncio.wait(tasks)
        return [task.result() for task in done]

    outputs = {tuple((await play(workflow))[1].output) for _ in range(4)}
    assert len(outputs) == 1


async def test_two_timers_with_one_callback_are_two_effects() -> None:
    async def workflow(task: Any, team: Team) -> Any:
        called: list[int] = []
        loop = asyncio.get_running_loop()

        def call() -> None:
            called.append(1)

        first, second = loop.call_later(0.001, call), loop.call_later(0.001, call)
        assert first == second
        first.cancel()
        await asyncio.sleep(0.003)
        return len(called)

    _, tail = await play(workflow)
    assert tail.output == 1


async def test_time_stands_still_between_results() -> None:
    async def workflow(task: Any, team: Team) -> Any:
        loop = asyncio.get_running_loop()
        times = [loop.time(), sum(range(10**5)) and loop.time()]
        await team.effect("e", echo, 1)
        return [*times, loop.time() > 0, loop.time() == team.now()]

    _, tail = await play(workflow)
    assert tail.output == [0.0, 0.0, True, True]


async def test_a_context_that_is_passed_is_the_tasks_own() -> None:
    variable = contextvars.ContextVar("variable", default=0)

    async def part(team: Team) -> None:
        variable.set(variable.get() + 1)
        await team.effect("e", echo, 1)

    async def workflow(task: Any, team: Team) -> Any:
        context = contextvars.copy_context()
        await asyncio.gather(*(asyncio.get_running_loop().create_task(part(team), context=context) for _ in range(2)))
        return context[variable]

    effects, tail = await play(workflow)
    assert tail.output == 2
    assert {effect.key.branch for effect in effects} == {"/part#0", "/part#1"}


async def test_executors_run_sync_code() -> None:
    async def workflow(task: Any, team: Team) -> Any:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as pool:
            return [await loop.run_in_executor(pool, len, "abc"), await loop.run_in_executor(None, len, "ab")]

    effects, tail = await play(workflow)
    assert tail.output == [3, 2]
    assert [effect.value for effect in effects] == [None, None]


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_another_process_runs_sync_code() -> None:
    async def check() -> Any:
        with ProcessPoolExecutor(1) as pool:

            async def workflow(task: Any, team: Team) -> Any:
                return await asyncio.get_running_loop().run_in_executor(pool, len, "abc")

            return (await play(workflow))[1].output

    assert asyncio.run(check()) == 3


async def test_abandoned_generators_are_closed_at_the_end_not_by_the_collector() -> None:
    async def workflow(task: Any, team: Team) -> Any:
        said: list[str] = []

        async def parts() -> Any:
            try:
                for i in range(3):
                    yield await team.effect("e", echo, i)
            finally:
                said.append("closed")
                await team.effect("closing", echo, 0)

        async for _ in parts():
            break
        gc.collect()
        await team.effect("e", echo, 9)
        return said.copy()

    effects, tail = await play(workflow)
    assert tail.output == []
    assert [f"{effect.key.branch}:{effect.key.position} {effect.name}" for effect in effects] == [
        ":0 e", ":1 e", "/~generators:0 closing",
    ]  # fmt: skip


async def test_generators_that_ended_are_not_kept() -> None:
    kept: list[int] = []

    async def workflow(task: Any, team: Team) -> None:
        async def parts() -> Any:
            yield 1

        for _ in range(200):
            async for _ in parts():
                pass
        kept.append(len(asyncio.get_running_loop()._generators))  # type: ignore[attr-defined]

    await play(workflow)
    assert kept[0] < 40


async def test_a_generator_that_fails_to_close_harms_nobody() -> None:
    async def workflow(task: Any, team: Team) -> int:
        async def parts() -> Any:
            try:
                yield 1
            finally:
                raise ValueError("no")

        async for _ in parts():
            break
        return 1

    heard: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: heard.append(context["message"]))
    _, tail = await play(workflow)
    assert tail.status == "done"
    assert "failed when it was closed" in heard[0]


def test_a_record_replays_in_a_process_with_other_hashes() -> None:
    code = (
        "import asyncio, sys, json\n"
        "from tests.runtime.harness import play\n"
        "async def echo(x):\n    return x\n"
        "async def part(team, i):\n    return await team.effect('e', echo, i)\n"
        "async def wf(task, team):\n"
        "    out = []\n"
        "    junk = [object() for _ in range(int(sys.argv[1]))]\n"
        "    for each in asyncio.as_completed([part(team, i) for i in range(12)]):\n        out.append(await each)\n"
        "    done, _ = await asyncio.wait([asyncio.create_task(part(team, i)) for i in range(12)])\n"
        "    return out, [t.result() for t in done]\n"
        "effects, tail = asyncio.run(play(wf))\n"
        "print(json.dumps([tail.output, [str(e.key) + e.note for e in effects]]))\n"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code, junk],
            env={"PYTHONHASHSEED": junk, "PYTHONPATH": "."},
            text=True,
            check=True,
            stdout=-1,
        ).stdout
        for junk in ("1", "777")
    }
    assert len(runs) == 1
