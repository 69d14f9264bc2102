"""A tape of a tool's results: what is on it is given again, by however many at once, and nothing else is."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentrl.config import experiment_json
from agentrl.errors import ToolError, UserError
from agentrl.tool import Tool, ToolOutput, as_tool, tool
from agentrl_tools.recorded import recorded
from agentrl_tools.search import Search
from tests.agents import ask, call, script
from tests.tools.servers import CORPUS

ROOT = Path(__file__).resolve().parents[2]


class Counted:
    """A tool that says how often it was called."""

    def __init__(self, fails: Callable[[], Exception | None] = lambda: None) -> None:
        self.calls = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.called = asyncio.Queue[int]()
        self.fails = fails

    name = "look"

    async def __call__(self, query: str, top: int = 1) -> ToolOutput:
        """Look for `query`."""
        self.calls += 1
        number = self.calls
        self.called.put_nowait(number)
        await self.gate.wait()
        error = self.fails()
        if error is not None:
            raise error
        return ToolOutput(f"{query} {number}", data={"n": number}, state=f"s{number}")


async def test_the_tool_is_called_once_and_its_whole_result_is_kept(tmp_path: Path) -> None:
    inner = Counted()
    look = recorded(inner, tmp_path / "tape.db")
    first = await look.call(query="a", top=2)
    assert first == ToolOutput("a 1", {"n": 1}, "s1")
    assert await look.call(top=2, query="a") == first
    assert await look.call(query="a") == ToolOutput("a 2", {"n": 2}, "s2")
    assert inner.calls == 2


def test_the_model_sees_the_same_tool(tmp_path: Path) -> None:
    plain = as_tool(Search(CORPUS))
    taped = recorded(Search(CORPUS), tmp_path / "tape.db")
    assert taped.spec == plain.spec
    assert taped.check({"query": 3}) == plain.check({"query": 3}) != ""
    assert (taped.timeout, taped.max_output, taped.retries) == (plain.timeout, plain.max_output, plain.retries)


async def test_a_tape_replays_with_the_tool_gone(tmp_path: Path) -> None:
    kept = await recorded(Counted(), tmp_path / "tape.db").call(query="São Paulo")
    gone = Counted(lambda: ConnectionError("gone"))
    again = recorded(gone, tmp_path / "tape.db", mode="replay")
    assert await again.call(query="São Paulo") == kept
    assert gone.calls == 0


async def test_a_call_that_is_not_on_the_tape_is_an_error_that_names_near_ones(tmp_path: Path) -> None:
    look = recorded(Counted(), tmp_path / "tape.db")
    for query in ("capital of Peru", "quark"):
        await look.call(query=query)
    gone = Counted()
    again = recorded(gone, tmp_path / "tape.db", mode="replay")
    with pytest.raises(
        ToolError, match=r"holds no look\(\{\"query\": \"capital of Chile\"\}\), near it are .*capital of Peru"
    ) as raised:
        await again.call(query="capital of Chile")
    assert "quark" not in str(raised.value)
    with pytest.raises(ToolError, match="and none like it; record it"):
        await again.call(query="\udcff" * 50)
    assert gone.calls == 0


async def test_a_missing_call_loses_the_episode_and_is_no_failure_of_the_model(tmp_path: Path) -> None:
    await recorded(Counted(), tmp_path / "tape.db").call(query="a")
    again = recorded(Counted(), tmp_path / "tape.db", mode="replay")
    played = await ask(script(call("look", query="b"), "Done."), tools=[again])
    assert played.tail.failure is not None
    assert (played.tail.status, played.tail.failure.fault) == ("failed", "tool")
    assert "holds no look" in played.tail.failure.message


async def test_recording_anew_replaces_what_an_earlier_process_recorded_and_asks_once(tmp_path: Path) -> None:
    inner = Counted()
    first = await recorded(inner, tmp_path / "tape.db").call(query="a")
    look = recorded(inner, tmp_path / "tape.db", mode="record")
    second = await look.call(query="a")
    assert second != first
    assert await look.call(query="a") == second
    assert await recorded(Counted(), tmp_path / "tape.db", mode="replay").call(query="a") == second


async def test_another_version_of_a_tool_is_another_tool(tmp_path: Path) -> None:
    one = await recorded(Search(CORPUS, top_k=1), tmp_path / "tape.db", version="top 1").call(query="Peru")
    two = await recorded(Search(CORPUS, top_k=2), tmp_path / "tape.db", version="top 2").call(query="Peru")
    assert one != two


@pytest.mark.parametrize("mode", ["auto", "record"])
async def test_equal_calls_at_the_same_time_are_made_once(tmp_path: Path, mode: Any) -> None:
    inner = Counted()
    inner.gate.clear()
    look = recorded(inner, tmp_path / "tape.db", mode=mode)
    async with asyncio.TaskGroup() as tasks:
        same = [tasks.create_task(look.call(query="a")) for _ in range(20)]
        other = tasks.create_task(look.call(query="b"))
        for _ in range(2):
            await inner.called.get()
        inner.gate.set()
    assert inner.calls == 2
    assert {task.result().text for task in same} == {"a 1"}
    assert other.result().text == "b 2"


async def test_when_the_first_of_equal_calls_is_cancelled_another_one_is_made(tmp_path: Path) -> None:
    inner = Counted()
    inner.gate.clear()
    look = recorded(inner, tmp_path / "tape.db")
    async with asyncio.TaskGroup() as tasks:
        first, second = tasks.create_task(look.call(query="a")), tasks.create_task(look.call(query="a"))
        await inner.called.get()
        first.cancel()
        inner.gate.set()
    assert first.cancelled()
    assert second.result().text == "a 2"


def test_threads_with_event_loops_of_their_own_share_a_tool(tmp_path: Path) -> None:
    look = recorded(Search(CORPUS, top_k=2), tmp_path / "tape.db")
    said: list[str] = []

    async def many() -> list[str]:
        return [(await look.call(query=query)).text for query in ("Peru", "Lima", "country", "Peru") for _ in range(5)]

    threads = [threading.Thread(target=lambda: said.append(json.dumps(asyncio.run(many())))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 4
    assert len(set(said)) == 1


WRITER = """
import asyncio, os, sys
from agentrl_tools.recorded import recorded

async def look(query: str) -> str:
    '''Look.'''
    return f"{query} by {os.getpid()}"

async def main():
    tool = recorded(look, sys.argv[1])
    print([(await tool.call(query=str(n))).text for n in range(200)])

sys.stdin.readline()
asyncio.run(main())
"""


def test_processes_that_record_at_the_same_time_are_given_the_same(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tools")))}
    command = [sys.executable, "-c", WRITER, str(tmp_path / "tape.db")]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    children = [subprocess.Popen(command, **pipes) for _ in range(3)]
    said = [child.communicate("go\n", timeout=60)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0, 0]
    assert said[0] == said[1] == said[2]
    with sqlite3.connect(tmp_path / "tape.db") as tape:
        assert tape.execute("SELECT count(*) FROM tape").fetchone() == (200,)
    tape.close()


async def test_what_a_tool_raises_is_recorded_only_if_asked_for_and_then_raised_alike(tmp_path: Path) -> None:
    class Odd(Exception): ...

    for number, error in enumerate((ValueError("no such page"), Odd("odd"))):
        inner = Counted(lambda error=error: error)
        plain = recorded(inner, tmp_path / f"plain{number}.db")
        for _ in range(2):
            with pytest.raises(type(error)):
                await plain.call(query="a")
        assert inner.calls == 2
        said = []
        for mode in ("auto", "replay"):
            with pytest.raises(Exception, match=str(error)) as raised:
                await recorded(inner, tmp_path / f"kept{number}.db", errors=True, mode=mode).call(query="a")
            said.append((type(raised.value), str(raised.value)))
        assert inner.calls == 3
        assert said[0] == said[1]


@pytest.mark.parametrize("error", [ToolError("the server is gone"), TimeoutError("too slow")])
async def test_a_broken_tool_and_a_timeout_are_never_recorded(tmp_path: Path, error: Exception) -> None:
    inner = Counted(lambda: error)
    look = recorded(inner, tmp_path / "tape.db", errors=True)
    for _ in range(2):
        with pytest.raises(type(error)):
            await look.call(query="a")
    assert inner.calls == 2


async def test_a_sync_tool_is_recorded_as_well(tmp_path: Path) -> None:
    def add(a: int, b: int) -> list[int]:
        """Add."""
        assert threading.current_thread() is not threading.main_thread()
        return [a + b]

    look = recorded(add, tmp_path / "tape.db")
    assert (await look.call(a=1, b=2)).text == "[3]"
    played = await ask(script(call("add", a=1, b=2), "Done."), tools=[look])
    assert [made.output for made in played.episode.turns[0].tool_calls] == ["[3]"]


async def nothing(query: str) -> str:
    """Nothing."""
    return ""


@tool(outlives=True)
async def mail(text: str) -> str:
    """Mail."""
    return "sent"


async def keyed(text: str, idempotency_key: str) -> str:
    """Mail with a key."""
    return idempotency_key


@pytest.mark.parametrize("given", [mail, keyed])
def test_a_tool_that_changes_the_world_is_refused(given: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="changes something beyond this process"):
        recorded(given, tmp_path / "tape.db")


def test_bad_tapes_and_modes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no tape .* to replay nothing from"):
        recorded(nothing, tmp_path / "none.db", mode="replay")
    with pytest.raises(UserError, match="mode 'auto', 'record' or 'replay', got 'rewind'"):
        recorded(nothing, tmp_path / "tape.db", mode="rewind")  # type: ignore[arg-type]
    (tmp_path / "text.db").write_text("this is no database, it is a text of more than a few bytes")
    with pytest.raises(UserError, match="cannot be used as a tape"):
        recorded(nothing, tmp_path / "text.db")
    with pytest.raises(UserError, match="cannot be used as a tape"):
        recorded(nothing, tmp_path / "text.db", mode="replay")
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE x(y)")
    other.close()
    with pytest.raises(UserError, match="is a database but no tape"):
        recorded(nothing, tmp_path / "other.db")
    with pytest.raises(UserError, match="is a database but no tape"):
        recorded(nothing, tmp_path / "other.db", mode="replay")


def test_an_experiment_tells_the_tool_inside_and_not_the_mode(tmp_path: Path) -> None:
    from agentrl import Agent, Experiment, Policy, Team, workflow

    def told(made: Tool) -> str:
        @workflow(Agent("a", tools=[made]), name="w")
        async def run(task: str, team: Team) -> str:
            return ""

        return json.dumps(experiment_json(Experiment(run, policies=Policy("p", model="m")))["workflow"]["agents"])

    tape = tmp_path / "tape.db"
    one = told(recorded(Search(CORPUS, top_k=1), tape))
    assert told(recorded(Search(CORPUS, top_k=1), tape, mode="replay")) == one
    assert told(recorded(Search(CORPUS, top_k=2), tape)) != one
    assert told(recorded(Search(CORPUS, top_k=1), tape, version="2")) != one
