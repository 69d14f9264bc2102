"""The journal: what is recorded, what a resume and a fork take from it, and how an episode ends."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import Any

import pytest

from agentrl.effect import Effect
from agentrl.errors import StoreError
from agentrl.limits import Limits
from agentrl.team import Team
from tests.runtime.harness import HEAD, Log, play


async def echo(value: Any) -> Any:
    return value


def keys(effects: Any) -> list[tuple[str, str, str]]:
    return [(str(effect.key), effect.kind, effect.status) for effect in effects]


async def test_an_effect_is_recorded_with_key_request_and_value() -> None:
    async def workflow(task: Any, team: Team) -> Any:
        return await team.effect("double", echo, {"b": 1, "a": [2]})

    effects, tail = await play(workflow)
    (effect,) = effects
    assert (str(effect.key), effect.kind, effect.name, effect.note) == (":0", "effect", "double", '[{"a":[2],"b":1}]')
    assert (effect.status, effect.value, effect.issued, effect.completed) == ("ok", {"b": 1, "a": [2]}, 0, 1)
    assert (tail.status, tail.output) == ("done", {"b": 1, "a": [2]})


async def test_what_a_workflow_does_to_a_result_is_not_recorded() -> None:
    async def workflow(task: Any, team: Team) -> Any:
        given = await team.effect("list", echo, [1])
        given.append(2)
        return given

    effects, tail = await play(workflow)
    assert (effects[0].value, tail.output) == ([1], [1, 2])
    _, again = await play(workflow, effects, mode="replay")
    assert (effects[0].value, again.output) == ([1], [1, 2])


async def test_an_error_is_the_same_live_and_on_replay() -> None:
    class Strange(Exception):
        pass

    async def fail(which: int) -> None:
        raise [KeyError("k"), Strange("s"), UnicodeDecodeError("utf8", b"", 0, 1, "r"), StopIteration("stop")][which]

    async def workflow(task: Any, team: Team) -> Any:
        said = []
        for which in range(4):
            try:
                await team.effect("fail", fail, which)
            except Exception as error:  # noqa: BLE001
                said.append(repr(error))
        return said

    effects, tail = await play(workflow)
    _, again = await play(workflow, effects, mode="replay")
    assert again.output == tail.output
    assert tail.output[1] == "EffectFailed('Strange: s')"


async def test_an_errors_cause_is_the_real_one_when_live() -> None:
    async def workflow(task: Any, team: Team) -> Any:
        try:
            await team.effect("fail", echo, object)
            await team.effect("fail", lambda: 1 // 0)
        except ZeroDivisionError as error:
            return error.__cause__ is not None and error.__cause__.__traceback__ is not None

    _, tail = await play(workflow)
    assert tail.failure is not None  # a class is no JSON
    assert "must give JSON" in tail.failure.message

    async def other(task: Any, team: Team) -> Any:
        try:
            await team.effect("fail", lambda: 1 // 0)
        except ZeroDivisionError as error:
            return error.__cause__ is not None and error.__cause__.__traceback__ is not None

    assert (await play(other))[1].output is True


async def test_an_argument_that_is_no_json_is_told_by_its_class() -> None:
    class Client:
        pass

    async def use(client: Client, value: int) -> int:
        return value

    async def workflow(task: Any, team: Team) -> Any:
        return await team.effect("use", use, Client(), 1)

    first, _ = await play(workflow)
    second, _ = await play(workflow)
    assert first[0].request == second[0].request


async def test_a_draw_is_recorded_so_that_a_fork_shares_it_and_draws_its_own_after_the_cut() -> None:
    async def workflow(task: Any, team: Team) -> Any:
        first = team.random("a").random()
        await team.effect("e", echo, first)
        return [first, team.random("a").random()]

    effects, tail = await play(workflow)
    assert tail.output[0] != tail.output[1]
    cut = effects[1].completed + 1
    record = [effect for effect in effects if effect.completed < cut]
    _, forked = await play(workflow, record, head=replace(HEAD, id="fork", seed=8))
    assert forked.output[0] == tail.output[0]
    assert forked.output[1] != tail.output[1]


async def test_a_resume_keeps_the_record_and_the_clock() -> None:
    async def workflow(task: Any, team: Team) -> Any:
        await asyncio.sleep(0.01)
        middle = team.now()
        await team.effect("e", echo, 1)
        return [middle, team.now()]

    effects, _ = await play(workflow)
    resumed, tail = await play(workflow, effects[:1])
    assert resumed[:1] == effects[:1]
    assert tail.output[0] == effects[0].at
    assert tail.output[1] >= tail.output[0]


async def test_a_sleep_goes_on_after_a_crash_with_what_is_left_of_it() -> None:
    async def workflow(task: Any, team: Team) -> Any:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.sleep(0.25))
            tasks.create_task(asyncio.sleep(0.2))

    effects, _ = await play(workflow)
    began = asyncio.get_running_loop().time()
    await play(workflow, effects[:1])
    assert asyncio.get_running_loop().time() - began < 0.15


async def test_a_suspended_episode_writes_nothing_more() -> None:
    said: list[str] = []

    async def workflow(task: Any, team: Team) -> Any:
        try:
            for n in range(5):
                await team.effect("e", echo, n)
        finally:
            said.append("cleanup")
            await team.effect("never", echo, 0)

    log = Log()
    await play(workflow, log=log, kill_at=2)
    assert [effect.name for effect in log.effects] == ["e", "e"]
    assert said == ["cleanup"]


async def test_a_note_written_twice_by_the_code_is_one_on_record() -> None:
    async def workflow(task: Any, team: Team) -> Any:
        team.reward(1.0, name="first")
        await team.effect("e", echo, 1)
        team.metric("m", 2)

    effects, tail = await play(workflow)
    for n in range(len(effects)):
        resumed, again = await play(workflow, effects[:n])
        assert keys(resumed) == keys(effects)
        assert (again.metrics, again.status) == (tail.metrics, "done")


async def test_a_workflow_where_all_wait_for_each_other_fails_at_once() -> None:
    async def workflow(task: Any, team: Team) -> Any:
        await team.effect("e", echo, 1)
        await asyncio.Event().wait()

    effects, tail = await play(workflow)
    assert tail.failure is not None
    assert "waits for another (workflow)" in tail.failure.message
    _, again = await play(workflow, effects, mode="replay", strict=False)
    assert again.failure == tail.failure


async def test_a_workflow_that_polls_fails() -> None:
    async def workflow(task: Any, team: Team) -> Any:
        waiting = asyncio.create_task(team.effect("e", echo, 1))
        while not waiting.done():  # noqa: ASYNC110
            await asyncio.sleep(0)

    _, tail = await play(workflow)
    assert tail.failure is not None
    assert "do not poll" in tail.failure.message


async def test_what_a_workflow_leaves_running_is_cancelled_and_may_clean_up() -> None:
    async def left(team: Team) -> None:
        try:
            await team.effect("long", asyncio.sleep, 60)
        finally:
            async with asyncio.timeout(5):
                await asyncio.create_task(team.effect("cleanup", echo, 1))

    async def workflow(task: Any, team: Team) -> int:
        asyncio.create_task(left(team))  # noqa: RUF006
        await team.effect("e", echo, 0)
        return 1

    effects, tail = await play(workflow)
    assert tail.status == "done"
    assert [(effect.name, effect.status) for effect in effects if effect.kind == "effect"] == [
        ("e", "ok"), ("long", "lost"), ("cleanup", "ok"),
    ]  # fmt: skip
    _, again = await play(workflow, effects, mode="replay")
    assert again.status == "done"


async def test_a_task_that_will_not_end_and_waits_for_nothing_is_left_behind() -> None:
    async def stubborn() -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue

    async def workflow(task: Any, team: Team) -> int:
        asyncio.create_task(stubborn())  # noqa: RUF006
        return await team.effect("e", echo, 1)

    _, tail = await play(workflow)
    assert (tail.status, tail.output) == ("done", 1)


async def test_lost_effects_are_on_record() -> None:
    async def workflow(task: Any, team: Team) -> str:
        try:
            async with asyncio.timeout(0.01):
                await team.effect("long", asyncio.sleep, 60)
        except TimeoutError:
            return "timeout"
        return "?"

    effects, tail = await play(workflow)
    assert tail.output == "timeout"
    assert [(effect.kind, effect.status) for effect in effects] == [("timer", "ok"), ("effect", "lost")]
    _, again = await play(workflow, effects, mode="replay")
    assert again.output == "timeout"


async def test_sync_code_runs_again_on_replay_and_its_order_is_recorded() -> None:
    ran: list[int] = []

    async def workflow(task: Any, team: Team) -> Any:
        async with asyncio.TaskGroup() as tasks:
            one = tasks.create_task(asyncio.to_thread(ran.append, 1))
            two = tasks.create_task(team.effect("e", echo, 2))
        return [one.result(), two.result()]

    effects, tail = await play(workflow)
    _, again = await play(workflow, effects, mode="replay")
    assert (ran, again.output) == ([1, 1], tail.output)
    assert {effect.kind: effect.value for effect in effects} == {"thread": None, "effect": 2}


async def test_sync_code_that_ends_otherwise_on_replay_diverges() -> None:
    results = iter([1, ValueError("now it fails")])

    def code() -> Any:
        result = next(results)
        if isinstance(result, Exception):
            raise result
        return result

    async def workflow(task: Any, team: Team) -> Any:
        return await asyncio.to_thread(code)

    effects, _ = await play(workflow)
    _, again = await play(workflow, effects, mode="replay")
    assert again.failure is not None
    assert "ended as ok in the record, and now: ValueError: now it fails" in again.failure.message


async def test_sync_code_that_hangs_costs_the_episode_nothing() -> None:
    release = threading.Event()

    async def workflow(task: Any, team: Team) -> Any:
        try:
            async with asyncio.timeout(0.02):
                await asyncio.to_thread(release.wait)
        except TimeoutError:
            return "timeout"

    effects, tail = await play(workflow)
    _, again = await play(workflow, effects, mode="replay")
    release.set()
    assert (tail.output, again.output) == ("timeout", "timeout")
    assert [effect.kind for effect in effects] == ["timer"]


async def test_a_replay_that_waits_for_sync_code_too_long_diverges() -> None:
    hang = threading.Event()
    hang.set()

    async def workflow(task: Any, team: Team) -> Any:
        return await asyncio.to_thread(hang.wait)

    effects, _ = await play(workflow)
    hang.clear()
    _, again = await play(workflow, effects, mode="replay", deadline=0.05)
    hang.set()
    assert again.failure is not None
    assert "waits since 0.05 s for sync code" in again.failure.message


async def test_a_record_that_was_cut_off_replays_to_where_it_ends() -> None:
    async def workflow(task: Any, team: Team) -> int:
        return await team.effect("e", echo, 1) + await team.effect("e", echo, 2)

    effects, _ = await play(workflow)
    _, tail = await play(workflow, effects[:1], mode="replay", strict=False)
    assert (tail.status, tail.failure and tail.failure.fault) == ("cancelled", "replay")


def outliving(calls: list[str]) -> Any:
    async def send(text: str) -> str:
        calls.append(text)
        return text

    return send


@pytest.mark.parametrize("idempotent", [True, False])
async def test_an_effect_that_outlives_the_process_is_run_again_only_if_idempotent(idempotent: bool) -> None:
    calls: list[str] = []

    async def workflow(task: Any, team: Team) -> Any:
        return await team.effect("send", outliving(calls), "mail", outlives=True, idempotent=idempotent)

    log = Log()
    effects, _ = await play(workflow, log=log)
    assert [effect.status for effect in effects] == ["intent", "ok"]
    assert log.flushed == 1, "the intent is durable before the thing itself"
    resumed, tail = await play(workflow, effects[:1])
    if idempotent:
        assert (tail.status, calls) == ("done", ["mail", "mail"])
        assert [effect.status for effect in resumed] == ["intent", "ok"]
    else:
        assert (tail.status, calls) == ("failed", ["mail"])
        assert tail.failure is not None
        assert tail.failure.fault == "effect"
        assert "effect 'send' at :0" in tail.failure.message


async def test_an_intent_whose_effect_was_cancelled_is_not_unknown() -> None:
    async def workflow(task: Any, team: Team) -> Any:
        try:
            async with asyncio.timeout(0.01):
                await team.effect("send", asyncio.sleep, 60, outlives=True, idempotent=False)
        except TimeoutError:
            return await team.effect("e", echo, "late")

    effects, tail = await play(workflow)
    assert [effect.status for effect in effects] == ["intent", "ok", "lost", "ok"]
    for n in (3, 4):
        _, again = await play(workflow, effects[:n])
        assert again.output == tail.output


class Refusing(Log):
    """A store that refuses the n-th effect."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def append(self, episode: str, effects: list[Effect]) -> None:
        super().append(episode, effects)
        if len(self.effects) == self.at:
            raise StoreError("the disk is full")


@pytest.mark.parametrize("at", [1, 2, 3])
async def test_an_episode_whose_store_fails_ends_with_whose_fault_it_is(at: int) -> None:
    async def workflow(task: Any, team: Team) -> Any:
        await team.effect("e", echo, 1)
        team.metric("m", 1)
        await team.effect("send", echo, 2, outlives=True)

    _, tail = await play(workflow, log=Refusing(at), limits=Limits(grace=0.2))
    assert tail.status == "failed"
    assert tail.failure is not None
    assert (tail.failure.fault, tail.failure.message) in (
        ("store", "the disk is full"),
        ("store", "StoreError: the disk is full"),
    )
