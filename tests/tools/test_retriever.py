"""The HTTP retriever: Search-R1's protocol, batches, retries, and what it says of a server that answers garbage."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from agentrl.engines.launch import free_port
from agentrl.errors import ToolError, UserError
from agentrl.tool import as_tool
from agentrl_tools import retriever as module
from agentrl_tools.retriever import NOTHING, Passage, Retriever, read_answer
from tests.agents import ask, call, script
from tests.tools.servers import Answer, serving


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BACKOFF_S", 0.0)


def replying(body: Any, *, status: int = 200, kind: str = "application/json") -> Answer:
    """A server that says the same to all."""

    async def answer(request: web.Request) -> web.Response:
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        return web.Response(body=text, status=status, content_type=kind)

    return answer


async def failure(body: Any, **more: Any) -> str:
    """What is said of a server that answers this to one query."""
    async with serving(replying(body, **more)) as served:
        tool = Retriever(served.url, max_bytes=4096)
        with pytest.raises(ToolError) as raised:
            await tool("Peru")
        await tool.aclose()
    told = str(raised.value)
    assert served.url in told
    assert "\n" not in told
    return told


async def test_it_speaks_the_protocol_of_search_r1_and_writes_documents_as_it_does() -> None:
    async with serving() as served:
        tool = Retriever(served.url, topk=2)
        output = await tool("Peru")
        await tool.aclose()
    assert served.asked == [{"queries": ["Peru"], "topk": 2, "return_scores": True}]
    first, rest = output.text.split("\nDoc 2")
    assert first == 'Doc 1(Title: "Peru") capital: Lima\ncurrency: Sol'
    assert rest.startswith("(Title: ")
    assert output.data["documents"][0] == "pe"
    assert output.data["scores"] == [1.0, 0.5]


async def test_nothing_found_is_an_answer() -> None:
    async with serving(replying({"result": [[]]})) as served:
        tool = Retriever(served.url)
        assert (await tool("quark")).text == NOTHING
        await tool.aclose()


async def test_documents_without_scores_are_read_as_well() -> None:
    async with serving(replying({"result": [[{"contents": '"Lima"\na city'}]]})) as served:
        tool = Retriever(served.url)
        assert await tool.find("Lima") == [Passage("Lima", '"Lima"', "a city", None)]
        await tool.aclose()


async def test_queries_of_the_same_moment_go_as_one_request_and_equal_ones_once() -> None:
    async with serving() as served:
        tool = Retriever(served.url, topk=1)
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(tool(query)) for query in ("Peru", "Lima", "Peru", "Callao")]
        await tool.aclose()
    assert [body["queries"] for body in served.asked] == [["Peru", "Lima", "Callao"]]
    assert [task.result().data["documents"] for task in asked] == [["pe"], ["li"], ["pe"], ["ca"]]


async def test_a_request_holds_a_batch_at_most_and_few_are_under_way_at_once() -> None:
    running = most = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        body = await request.json()
        assert len(body["queries"]) <= 4
        for _ in range(20):
            await asyncio.sleep(0)
        running -= 1
        return web.json_response({"result": [[] for _ in body["queries"]]})

    async with serving(answer) as served:
        tool = Retriever(served.url, batch=4, concurrency=2)
        async with asyncio.TaskGroup() as tasks:
            for number in range(40):
                tasks.create_task(tool(f"query {number}"))
        await tool.aclose()
    assert most == 2


async def test_whoever_is_cancelled_takes_no_answer_from_the_others() -> None:
    reached, go = asyncio.Event(), asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        reached.set()
        await go.wait()
        return web.json_response({"result": [[{"contents": query}] for query in (await request.json())["queries"]]})

    async with serving(answer) as served:
        tool = Retriever(served.url)
        async with asyncio.TaskGroup() as tasks:
            gone, stays = tasks.create_task(tool.find("a")), tasks.create_task(tool.find("b"))
            await reached.wait()
            gone.cancel()
            go.set()
        await tool.aclose()
    assert gone.cancelled()
    assert [passage.title for passage in stays.result()] == ["b"]


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_what_may_pass_is_tried_again(status: int) -> None:
    tries = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal tries
        tries += 1
        return web.json_response({"result": [[]]}) if tries == 3 else web.Response(status=status)

    async with serving(answer) as served:
        tool = Retriever(served.url, retries=2)
        assert await tool.find("Peru") == []
        await tool.aclose()
    assert tries == 3


async def test_a_server_that_closes_the_connection_is_tried_again() -> None:
    tries = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal tries
        tries += 1
        if tries == 1:
            assert request.transport is not None
            request.transport.close()
        return web.json_response({"result": [[]]})

    async with serving(answer) as served:
        tool = Retriever(served.url)
        assert await tool.find("Peru") == []
        await tool.aclose()
    assert tries == 2


async def test_a_server_that_is_gone_is_named_with_what_to_do() -> None:
    tool = Retriever(f"http://127.0.0.1:{free_port()}/retrieve", retries=1)
    with pytest.raises(ToolError, match=r"could not be reached \(.*\) after 2 tries; look whether the server runs"):
        await tool("Peru")
    await tool.aclose()


async def test_a_server_that_never_answers_is_given_up_at_the_deadline() -> None:
    async def answer(request: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async with serving(answer) as served:
        tool = Retriever(served.url, timeout=0.05)
        with pytest.raises(ToolError, match=r"gave nothing within 0\.05 s"):
            await tool("Peru")
        await tool.aclose()
    assert as_tool(tool).timeout > 0.05  # the tool's own deadline leaves room for that message


GARBAGE: list[tuple[Any, dict[str, Any], str]] = [
    (b"<html>502 Bad Gateway</html>", {"kind": "text/html"}, "something that is no JSON: '<html>502"),
    (b"", {}, "something that is no JSON: ''"),
    (b"\xff\xfe\0", {}, "something that is no JSON"),
    (b"[" * 4000, {}, "something that is no JSON"),
    ([], {}, "without a list 'result': '[]'"),
    ({"results": []}, {}, "without a list 'result'"),
    ({"result": None}, {}, "without a list 'result'"),
    ({"result": []}, {}, "answered 1 queries with 0 lists"),
    ({"result": [[], []]}, {}, "answered 1 queries with 2 lists"),
    ({"result": ["Lima"]}, {}, "which is no list of documents"),
    ({"result": [["Lima"]]}, {}, "gave a document that is not"),
    ({"result": [[{"document": {"text": "x"}, "score": 1.0}]]}, {}, "gave a document that is not"),
    ({"result": [[{"document": {"contents": "x"}, "score": "high"}]]}, {}, "gave a document that is not"),
    (b"x" * 5000, {}, "answered with more than 4096 bytes"),
    ({"detail": "Not Found"}, {"status": 404}, """answered 404: '{"detail": "Not Found"}'; is it the address"""),
    ({"detail": "queries: field required"}, {"status": 422}, "answered 422"),
    (b"Internal\nServer Error", {"status": 500}, "answered 500: 'Internal Server Error' after 4 tries"),
]


@pytest.mark.parametrize(("body", "more", "said"), GARBAGE, ids=[said for _, _, said in GARBAGE])
async def test_garbage_is_told_in_one_line(body: Any, more: dict[str, Any], said: str) -> None:
    assert said in await failure(body, **more)


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.text() | st.floats(), lambda x: st.lists(x) | st.dictionaries(st.text(), x))
)
def test_no_answer_breaks_it(answer: Any) -> None:
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    try:
        read = read_answer(body, 1, 3, "server")
    except ToolError as error:
        assert "\n" not in str(error)
    else:
        assert len(read) == 1


async def test_a_broken_retriever_loses_the_episode_and_is_no_failure_of_the_model() -> None:
    async with serving(replying(b"<html>", kind="text/html")) as served:
        tool = Retriever(served.url)
        played = await ask(script(call("search", query="Peru"), "Lima"), tools=[tool])
        await tool.aclose()
    assert played.tail.status == "failed"
    assert played.tail.failure is not None
    assert played.tail.failure.fault == "tool"
    assert "no JSON" in played.tail.failure.message


async def test_calls_of_one_turn_that_fail_together_are_the_tools_fault_as_well() -> None:
    tool = Retriever(f"http://127.0.0.1:{free_port()}/retrieve", retries=0)
    both = call("search", query="Peru") + "\n" + call("search", query="Lima")
    played = await ask(script(both, "Lima"), tools=[tool])
    await tool.aclose()
    assert played.tail.failure is not None
    assert played.tail.failure.fault == "tool"


async def test_an_agent_searches_with_it_and_the_record_has_the_documents() -> None:
    async with serving() as served:
        tool = Retriever(served.url, topk=1)
        played = await ask(script(call("search", query="Peru"), "Lima"), tools=[tool])
        await tool.aclose()
    assert played.tail.status == "done"
    (made,) = played.episode.turns[0].tool_calls
    assert (made.status, made.data["documents"]) == ("ok", ["pe"])


def test_one_object_serves_event_loops_one_after_another_and_leaves_no_connection_open() -> None:
    async def once() -> str:
        async with serving() as served:
            tool.url = served.url
            return (await tool("Lima")).text

    tool = Retriever("http://127.0.0.1:1/retrieve", topk=1)
    assert asyncio.run(once()) == asyncio.run(once())  # an unclosed session would be a ResourceWarning, and so an error


@pytest.mark.parametrize(
    ("url", "more", "said"),
    [
        ("localhost:8000/retrieve", {}, "needs an address such as"),
        ("http:///retrieve", {}, "needs an address such as"),
        ("http://a", {"topk": 0}, "topk >= 1, got 0"),
        ("http://a", {"batch": 0}, "batch >= 1, got 0"),
        ("http://a", {"timeout": 0}, "timeout > 0"),
    ],
)
def test_bad_settings_are_refused(url: str, more: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Retriever(url, **more)
