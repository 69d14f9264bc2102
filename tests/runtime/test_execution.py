"""One episode from head to tail: whatever goes wrong inside is a value, harms no sibling and ends in time."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Any

import pytest

from agentrl.errors import EngineError
from agentrl.limits import Limits
from agentrl.runtime.execution import Execution, Program, Surroundings
from agentrl.runtime.scope import EffectTasks
from agentrl.runtime.threads import DaemonThreads
from agentrl.runtime.turnstile import Turnstile
from agentrl.store.contract import EpisodeTail
from agentrl.team import Team
from agentrl.workflow import Ask, Asked, Outcome
from tests.runtime.harness import HEAD, Log, play

SHORT = Limits(grace=0.1)


async def echo(value: Any) -> Any:
    return value


async def test_a_workflow_that_raises_fails_with_its_message() -> None:
    async def workflow(task: Any, team: Team) -> None:
        raise ValueError("no")

    _, tail = await play(workflow)
    assert (tail.status, tail.failure and (tail.failure.fault, tail.failure.message)) == (
        "failed",
        ("workflow", "ValueError: no"),
    )


async def test_a_workflow_that_calls_sys_exit_fails_alone() -> None:
    async def workflow(task: Any, team: Team) -> None:
        sys.exit(3)

    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    _, tail = await play(workflow)
    assert (tail.status, tail.failure and tail.failure.message) == ("failed", "SystemExit: 3")


async def test_an_effect_that_calls_sys_exit_fails_alone() -> None:
    async def workflow(task: Any, team: Team) -> None:
        await team.effect("leave", sys.exit, 3)

    _, tail = await play(workflow)
    assert tail.failure is not None
    assert "sys.exit(3)" in tail.failure.message


async def test_an_output_that_is_no_json_is_the_workflows_fault() -> None:
    async def workflow(task: Any, team: Team) -> Any:
        return {1, 2}

    _, tail = await play(workflow)
    assert tail.failure is not None
    assert "cannot be stored as JSON" in tail.failure.message


async def test_a_workflow_that_cancels_itself_is_cancelled() -> None:
    async def workflow(task: Any, team: Team) -> None:
        current = asyncio.current_task()
        assert current is not None
        current.cancel()
        await team.effect("e", echo, 1)

    _, tail = await play(workflow)
    assert (tail.status, tail.failure and tail.failure.message) == ("cancelled", "the workflow cancelled itself")


async def test_a_workflow_that_never_ends_is_over_budget_at_its_deadline() -> None:
    async def workflow(task: Any, team: Team) -> None:
        while True:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    effects, tail = await play(workflow, deadline=0.05)
    assert (tail.status, tail.failure and tail.failure.message) == ("over_budget", "deadline: 0.05 s")
    assert effects[-1].kind == "deadline"
    _, again = await play(workflow, effects, mode="replay", strict=False)
    assert (again.status, again.failure) == (tail.status, tail.failure)


async def test_the_deadline_counts_what_an_episode_lived_before_a_crash() -> None:
    async def workflow(task: Any, team: Team) -> None:
        await asyncio.sleep(0.06)
        await asyncio.sleep(60)

    effects, _ = await play(workflow, deadline=0.1)
    began = asyncio.get_running_loop().time()
    _, tail = await play(workflow, effects[:1], deadline=0.1)
    assert tail.status == "over_budget"
    assert asyncio.get_running_loop().time() - began < 0.09


async def test_cleanup_after_a_deadline_runs_and_is_recorded() -> None:
    async def workflow(task: Any, team: Team) -> Any:
        try:
            await team.effect("long", asyncio.sleep, 60)
        finally:
            await team.effect("cleanup", echo, 1)

    effects, tail = await play(workflow, deadline=0.02)
    assert tail.status == "over_budget"
    assert [(effect.name, effect.status) for effect in effects] == [("deadline", "ok"), ("long", "lost"), ("cleanup", "ok")]
    again, _ = await play(workflow, effects, mode="replay", strict=False)
    assert len(again) == len(effects)


async def test_what_a_workflow_saves_at_its_deadline_is_its_output() -> None:
    async def workflow(task: Any, team: Team) -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "so far"
        return "all"

    _, tail = await play(workflow, deadline=0.02)
    assert (tail.status, tail.output) == ("over_budget", "so far")


async def test_a_workflow_that_swallows_its_cancellation_is_left_behind() -> None:
    async def workflow(task: Any, team: Team) -> None:
        while True:
            try:
                await asyncio.sleep(0.001)
            except asyncio.CancelledError:
                continue

    loop = asyncio.get_running_loop()
    began = loop.time()
    _, tail = await play(workflow, deadline=0.02, limits=SHORT)
    assert tail.status == "over_budget"
    assert loop.time() - began < 2.0


async def test_a_tool_that_ignores_its_cancellation_is_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    free = asyncio.Event()

    async def ignore() -> None:
        while not free.is_set():
            try:
                await free.wait()
            except asyncio.CancelledError:
                continue

    async def workflow(task: Any, team: Team) -> str:
        try:
            async with asyncio.timeout(0.01):
                await team.effect("ignore", ignore)
        except TimeoutError:
            return "went on"
        return "?"

    loop = asyncio.get_running_loop()
    began = loop.time()
    _, tail = await play(workflow, limits=SHORT)
    free.set()
    assert (tail.status, tail.output) == ("done", "went on")
    assert loop.time() - began < 2.0
    assert "ignore ignores its cancellation and is left behind" in caplog.text
    await asyncio.sleep(0.01)


async def test_a_sync_effect_that_hangs_is_left_in_its_thread() -> None:
    release = threading.Event()

    async def workflow(task: Any, team: Team) -> str:
        try:
            async with asyncio.timeout(0.01):
                await team.effect("hang", release.wait)
        except TimeoutError:
            return "went on"
        return "?"

    _, tail = await play(workflow, limits=SHORT)
    release.set()
    assert tail.output == "went on"


async def test_an_effect_cancelled_from_inside_is_an_error_not_a_cancellation() -> None:
    async def cancelled() -> None:
        raise asyncio.CancelledError

    async def workflow(task: Any, team: Team) -> None:
        await team.effect("odd", cancelled)

    _, tail = await play(workflow)
    assert (tail.status, tail.failure and tail.failure.fault) == ("failed", "tool")
    assert tail.failure is not None
    assert "cancelled from inside" in tail.failure.message


async def test_a_failing_attempt_is_made_again_and_recorded_as_lost() -> None:
    attempts: list[int] = []

    async def run(asked: Asked) -> Outcome:
        attempts.append(asked.attempt)
        if len(attempts) < 3:
            raise EngineError("busy", retryable=True)
        return Outcome("fine")

    async def workflow(task: Any, team: Team) -> Any:
        return (await team.world.perform(Ask("effect", "call", b"", "", run, retries=2))).value

    effects, tail = await play(workflow, limits=Limits(retry_wait=0.001))
    assert (tail.output, attempts) == ("fine", [0, 1, 2])
    assert [(str(effect.key), effect.status) for effect in effects] == [(":0", "lost"), (":0~1", "lost"), (":0~2", "ok")]
    attempts.clear()
    resumed, _ = await play(workflow, effects[:1], limits=Limits(retry_wait=0.001))
    assert [(str(effect.key), effect.status) for effect in resumed] == [(":0", "lost"), (":0~1", "lost"), (":0~2", "error")]


class Stage:
    """Several episodes in one runtime's surroundings."""

    def __init__(self, tasks: EffectTasks, limits: Limits = SHORT, log: Log | None = None) -> None:
        self.threads = DaemonThreads()
        self.around = Surroundings(tasks, Turnstile(), self.threads, limits, log)

    def execution(self, workflow: Any) -> Execution:
        return Execution(
            HEAD, (), Program(lambda world: workflow(None, Team(world, {}, {}, self.threads.run)), None), self.around
        )


def watched() -> tuple[Log, asyncio.Event]:
    """A log, and when something was written to it."""
    log, written = Log(), asyncio.Event()
    log.on_write = lambda count: written.set()
    return log, written


async def test_a_failing_episode_harms_no_sibling() -> None:
    async def fine(task: Any, team: Team) -> Any:
        for _ in range(5):
            await asyncio.sleep(0.002)
        return await team.effect("e", echo, "fine")

    async def raises(task: Any, team: Team) -> Any:
        await team.effect("e", echo, 1)
        raise BaseExceptionGroup("all of them", [KeyError("x"), asyncio.CancelledError()])

    async def exits(task: Any, team: Team) -> Any:
        await team.effect("leave", sys.exit, 1)

    async def abandons(task: Any, team: Team) -> Any:
        async def abandon(asked: Asked) -> None:
            raise OSError("the engine is gone")

        async def run(asked: Asked) -> Outcome:
            await asyncio.sleep(60)
            return Outcome()

        async with asyncio.timeout(0.005):
            await team.world.perform(Ask("model", "m", b"", "", run, abandon))

    async with EffectTasks(0.1) as tasks, asyncio.TaskGroup() as group:
        stage = Stage(tasks)
        running = [group.create_task(stage.execution(each).run()) for each in (fine, raises, fine, exits, abandons, fine)]
    statuses = [task.result()[1].status for task in running]
    assert statuses == ["done", "failed", "done", "failed", "failed", "done"]
    assert tasks is not None
    stage.threads.close()


async def test_cancelling_the_run_suspends_it_without_a_word_in_the_record() -> None:
    log, written = watched()
    cleaned: list[str] = []

    async def workflow(task: Any, team: Team) -> Any:
        await team.effect("e", echo, 1)
        try:
            await team.effect("long", asyncio.sleep, 60)
        finally:
            cleaned.append("cleanup")

    async with EffectTasks(0.1) as tasks:
        stage = Stage(tasks, log=log)
        running = asyncio.create_task(stage.execution(workflow).run())
        await written.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert [effect.name for effect in log.effects] == ["e"]
    assert cleaned == ["cleanup"]
    stage.threads.close()


async def test_a_runtime_that_ends_puts_its_episodes_aside() -> None:
    log, written = watched()

    async def workflow(task: Any, team: Team) -> Any:
        await team.effect("e", echo, 1)
        await team.effect("long", asyncio.sleep, 60)

    async with EffectTasks(0.1) as tasks:
        stage = Stage(tasks, log=log)
        running = asyncio.create_task(stage.execution(workflow).run())
        await written.wait()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [effect.name for effect in log.effects] == ["e"]
    stage.threads.close()


async def test_cancelling_an_episode_is_recorded_and_its_cleanup_runs() -> None:
    async def workflow(task: Any, team: Team) -> Any:
        try:
            await asyncio.sleep(60)
        finally:
            await team.effect("cleanup", echo, 1)

    def began(execution: Execution) -> None:
        asyncio.get_running_loop().call_later(0.01, execution.cancel, "the user left")

    effects, tail = await play(workflow, began=began)
    assert (tail.status, tail.failure and tail.failure.message) == ("cancelled", "cancel: the user left")
    assert [(effect.kind, effect.value) for effect in effects] == [("cancel", "the user left"), ("effect", 1)]


async def test_a_reward_is_checked_and_its_fault_is_its_own() -> None:
    async def workflow(task: Any, team: Team) -> int:
        return 1

    async def given(value: Any) -> EpisodeTail:
        return (await play(workflow, reward=lambda output, episode: value))[1]

    assert [(reward.name, reward.value) for reward in (await given({"a": 1, "b": 0.5})).rewards] == [("a", 1.0), ("b", 0.5)]
    for bad in (float("nan"), "1", True, None):
        tail = await given(bad)
        assert (tail.status, tail.failure and tail.failure.fault) == ("failed", "reward"), bad


async def test_an_async_reward_that_hangs_is_ended() -> None:
    async def workflow(task: Any, team: Team) -> int:
        return 1

    async def reward(output: Any, episode: Any) -> float:
        await asyncio.sleep(60)
        return 1.0

    _, tail = await play(workflow, reward=reward, limits=Limits(reward_timeout=0.02))
    assert (tail.status, tail.failure and tail.failure.fault) == ("failed", "reward")
