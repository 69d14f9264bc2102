"""Tools: what the model is told of them, and that whatever a call comes to is an output with a status."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from agentrl.episode import ToolCall
from agentrl.errors import UserError
from agentrl.tool import Tool, ToolOutput, as_tool, as_tools, tool
from agentrl.toolcall import cut_middle
from tests.agents import ask, call, script


async def search(
    query: str, top: int = 3, kind: Literal["web", "docs"] = "web", tags: list[str] | None = None, share: float = 0.5
) -> str:
    """Search for `query`."""
    return query


async def called(reply: str, *tools: Any) -> ToolCall:
    """What came of the call in a reply."""
    played = await ask(script(reply, "Done."), tools=list(tools))
    assert (played.tail.status, played.tail.output) == ("done", "Done."), played.tail
    (made,) = played.episode.turns[0].tool_calls
    assert played.reply is not None
    (told,) = [message.content for message in played.reply.messages if message.role == "tool"]
    assert told == made.output, "the model reads what is recorded"
    return made


def test_the_schema_is_made_of_annotations() -> None:
    made = as_tool(search)
    assert made.description == "Search for `query`."
    assert made.parameters == {
        "type": "object",
        "properties": {
            "query": {"type": "string"},
            "top": {"type": "integer", "default": 3},
            "kind": {"enum": ["web", "docs"], "default": "web"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "share": {"type": "number", "default": 0.5},
        },
        "required": ["query"],
    }


def test_an_annotated_argument_has_a_description() -> None:
    def look(where: Annotated[str, "a street"]) -> str:
        """Look."""
        return where

    assert as_tool(look).parameters["properties"]["where"] == {"type": "string", "description": "a street"}


def test_the_idempotency_key_is_hidden_from_the_model() -> None:
    def send(text: str, idempotency_key: str) -> str:
        """Send."""
        return text

    made = as_tool(send)
    assert (list(made.parameters["properties"]), made.keyed) == (["text"], True)


def test_what_the_model_could_not_use_is_refused() -> None:
    def undocumented(x: str) -> str:
        return x

    def untyped(x) -> str:  # type: ignore[no-untyped-def]
        """Doc."""
        return x

    def starred(*x: str) -> str:
        """Doc."""
        return x[0]

    def odd(x: set[str]) -> str:
        """Doc."""
        return "".join(x)

    for bad, why in (
        (undocumented, "docstring"),
        (untyped, "annotation"),
        (starred, "name each argument"),
        (odd, "JSON cannot"),
    ):
        with pytest.raises(UserError, match=why):
            as_tool(bad)
    with pytest.raises(UserError, match="two tools"):
        as_tools([search, search])
    with pytest.raises(UserError, match="needs idempotent=True"):
        tool(retries=2, idempotent=False)(search)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({}, "needs query"),
        ({"query": 3}, "query must be string, got 3"),
        ({"query": "x", "top": True}, "top must be integer"),
        ({"query": "x", "other": 1}, "no argument 'other'; it takes query, top"),
        ({"query": "x", "kind": "papers"}, "kind must be one of"),
        ({"query": "x", "tags": [1]}, "tags"),
    ],
)
async def test_bad_arguments_are_told_to_the_model(arguments: dict[str, Any], why: str) -> None:
    made = await called(call("search", **arguments), search)
    assert (made.status, made.attempts) == ("bad_arguments", 0)
    assert why in made.output


async def test_an_unknown_tool_is_told_to_the_model() -> None:
    made = await called(call("serach", query="x"), search)
    assert (made.status, made.output) == ("unknown_tool", "there is no tool 'serach'; there are: search")


async def test_an_error_is_told_to_the_model() -> None:
    async def fail(x: str) -> str:
        """Fails."""
        raise ValueError(f"no {x}")

    made = await called(call("fail", x="y"), fail)
    assert (made.status, made.output) == ("error", "fail failed: ValueError: no y")


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_sys_exit_in_a_tool_is_an_error(kind: str) -> None:
    async def leave(x: str) -> str:
        """Leaves."""
        sys.exit(2)

    def leave_sync(x: str) -> str:
        """Leaves."""
        sys.exit(2)

    made = await called(call("leave", x="y"), leave) if kind == "async" else await called(call("leave_sync", x="y"), leave_sync)
    assert made.status == "error"
    assert "sys.exit(2)" in made.output


async def test_a_tool_cancelled_from_inside_is_cancelled_not_the_episode() -> None:
    async def odd(x: str) -> str:
        """Odd."""
        raise asyncio.CancelledError

    assert (await called(call("odd", x="y"), odd)).status == "cancelled"


async def test_a_timeout_is_told_to_the_model() -> None:
    @tool(timeout=0.02)
    async def slow(x: str) -> str:
        """Slow."""
        await asyncio.sleep(30)
        return x

    made = await called(call("slow", x="y"), slow)
    assert (made.status, made.output) == ("timeout", "slow gave nothing within 0.02 s")


async def test_a_sync_tool_that_hangs_times_out() -> None:
    release = threading.Event()

    @tool(timeout=0.05)
    def hang(x: str) -> str:  # type: ignore[type-var]
        """Hangs."""
        release.wait(30)
        return x

    began = time.monotonic()
    made = await called(call("hang", x="y"), hang)
    release.set()
    assert made.status == "timeout"
    assert time.monotonic() - began < 10


async def test_a_tools_own_timeout_error_is_an_error() -> None:
    async def slow(x: str) -> str:
        """Slow."""
        raise TimeoutError("the server did not answer")

    made = await called(call("slow", x="y"), slow)
    assert (made.status, made.output) == ("error", "slow failed: TimeoutError: the server did not answer")


async def test_a_flood_is_cut_in_the_middle() -> None:
    @tool(max_output=100)
    async def flood(x: str) -> str:
        """Floods."""
        return "a" * 5000 + "z" * 5000

    made = await called(call("flood", x="y"), flood)
    assert (made.status, made.truncated) == ("ok", True)
    assert made.output == f"{'a' * 50}\n[... 9900 characters cut ...]\n{'z' * 50}"


def test_cutting_keeps_what_fits() -> None:
    assert cut_middle("abc", 3) == "abc"
    assert len(cut_middle("x" * 10_000, 1000)) < 1050


async def test_retries_end_with_the_first_success() -> None:
    tried: list[list[int]] = []

    @tool(retries=3)
    async def flaky(items: list[int]) -> str:
        """Fails twice."""
        tried.append(items.copy())
        items.append(9)  # each try has its arguments to itself
        if len(tried) < 3:
            raise ConnectionError("again")
        return "fine"

    made = await called(call("flaky", items=[1]), flaky)
    assert (made.status, made.attempts, made.arguments, tried) == ("ok", 3, {"items": [1]}, [[1]] * 3)


async def test_without_retries_an_error_is_final() -> None:
    tried: list[int] = []

    async def flaky(x: str) -> str:
        """Fails."""
        tried.append(1)
        raise ConnectionError("again")

    assert ((await called(call("flaky", x="y"), flaky)).attempts, len(tried)) == (1, 1)


async def test_outputs_have_data_and_state_and_are_json() -> None:
    async def step(x: str) -> ToolOutput:
        """Steps."""
        return ToolOutput("moved", {"ids": [1, 2]}, state="room 2")

    async def listing(x: str) -> Sequence[dict[str, int]]:
        """Lists."""
        return [{"a": 1}]

    async def opaque(x: str) -> ToolOutput:
        """Not JSON."""
        return ToolOutput("x", {"object": object()})

    made = await called(call("step", x="y"), step)
    assert (made.output, made.data) == ("moved", {"ids": [1, 2]})
    assert (await called(call("listing", x="y"), listing)).output == '[{"a": 1}]'
    assert (await called(call("opaque", x="y"), opaque)).status == "error"


async def test_a_callable_object_is_a_tool_with_its_own_limits() -> None:
    @dataclass
    class Lookup:
        """Look up a word."""

        name: str = "lookup"
        timeout: float = 2.0

        async def __call__(self, word: str) -> str:
            return word.upper()

    made = as_tool(Lookup())
    assert (made.name, made.timeout, made.is_async, made.description) == ("lookup", 2.0, True, "Look up a word.")
    assert (await called(call("lookup", word="a"), Lookup())).output == "A"


async def test_a_tool_that_outlives_gets_one_key_for_every_try() -> None:
    keys: list[str] = []

    @tool(outlives=True, retries=1)
    async def send(text: str, idempotency_key: str) -> str:
        """Send."""
        keys.append(idempotency_key)
        if len(keys) == 1:
            raise ConnectionError("again")
        return "sent"

    played = await ask(script(call("send", text="hi"), "Done."), tools=[send])
    assert played.tail.output == "Done."
    assert keys == ["e|:1", "e|:1"]
    assert [effect.status for effect in played.effects if effect.kind == "tool"] == ["intent", "ok"]


def test_limits_are_checked() -> None:
    with pytest.raises(UserError, match="timeout must be > 0"):
        Tool("t", "d", {"type": "object", "properties": {}}, search, timeout=0)
