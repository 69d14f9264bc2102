"""`OpenAIEngine` against an endpoint that speaks chat completions: what is sent, what is read, what is tried again."""

from __future__ import annotations

import asyncio
import email.utils
import json
import logging
import time
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np
import pytest

from agentrl.engines.contract import GenerateRequest, Generation, Media, ScoreRequest
from agentrl.engines.openai import OpenAIEngine
from agentrl.episode import IntArray, Sampling, Version, digest_ids, token_ids
from agentrl.errors import ContextOverflow, EngineError, UserError
from agentrl.rendering.chat import ChatRenderer
from agentrl.rendering.contract import Message, ToolSpec
from tests.engines.chat_server import ChatServer, called, said

KEY = "sk-very-secret-0123456789"
TOOL = ToolSpec("look", "Looks.", {"type": "object", "properties": {"at": {"type": "string"}}})


@pytest.fixture
async def server() -> AsyncGenerator[ChatServer, None]:
    async with ChatServer() as opened:
        yield opened


@pytest.fixture
async def engine(server: ChatServer) -> AsyncGenerator[OpenAIEngine, None]:
    async with OpenAIEngine(server.url, "gpt-test", api_key=KEY, seconds=20.0) as opened:
        yield opened


def prompt(*messages: Message, tools: tuple[ToolSpec, ...] = ()) -> IntArray:
    renderer = ChatRenderer()
    return renderer.extend(renderer.open(messages or (Message("user", "hi"),), tools)).ids


def request(ids: IntArray | None = None, sampling: Sampling | None = None, **more: Any) -> GenerateRequest:
    settings: dict[str, Any] = {"id": "r", "policy": "policy", "seed": 1, **more}
    return GenerateRequest(parts=(prompt() if ids is None else ids,), sampling=sampling or Sampling(max_tokens=9), **settings)


async def test_messages_tools_and_sampling_are_sent_as_the_api_has_them(server: ChatServer, engine: OpenAIEngine) -> None:
    ids = prompt(Message("system", "Be brief."), Message("user", "Grüß\ndich"), tools=(TOOL,))
    await engine.generate(request(ids, Sampling(0.3, top_p=0.9, max_tokens=7, stop=("END",)), seed=(5 << 40) + 3))
    (body,) = server.bodies
    assert body == {
        "model": "gpt-test",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüß\ndich"}],
        "tools": [TOOL.as_openai()],
        "temperature": 0.3,
        "top_p": 0.9,
        "max_tokens": 7,
        "stop": ["END"],
        "seed": 3,
    }
    assert server.keys == [f"Bearer {KEY}"]


async def test_the_reply_is_bytes_with_no_logprobs_and_the_counted_tokens_are_costs(engine: OpenAIEngine) -> None:
    ids, pieces = prompt(), []
    reply = await engine.generate(request(ids, on_tokens=lambda new, logprobs: pieces.append((new, logprobs))))
    assert reply.text == "ok" and reply.finish == "stop"
    assert json.loads(ChatRenderer().decode(reply.ids)) == {"role": "assistant", "content": "ok"}
    assert np.isnan(reply.logprobs).all() and reply.logprobs.shape == reply.ids.shape
    assert reply.digest == digest_ids(ids, reply.ids)
    assert [(span.version, span.start, span.end) for span in reply.spans] == [(engine.version("policy"), 0, len(reply.ids))]
    assert reply.costs == {"policy/prompt_tokens": 11, "policy/completion_tokens": 3}
    assert len(pieces) == 1 and np.array_equal(pieces[0][0], reply.ids)


async def test_finish_reasons_are_read(server: ChatServer, engine: OpenAIEngine) -> None:
    for given, expected in {"stop": "stop", "length": "length", "content_filter": "stop"}.items():
        server.reply = lambda body, given=given: said("x", finish=given)
        assert (await engine.generate(request())).finish == expected
    server.reply = lambda body: said("x", finish="meditating")
    with pytest.raises(EngineError, match="unknown finish reason 'meditating'"):
        await engine.generate(request())


async def test_a_refusal_is_the_reply(server: ChatServer, engine: OpenAIEngine) -> None:
    server.reply = lambda body: {"message": {"role": "assistant", "content": None, "refusal": "No."}, "finish_reason": "stop"}
    assert (await engine.generate(request())).text == "No."


async def test_tool_calls_go_round(server: ChatServer, engine: OpenAIEngine) -> None:
    server.reply = lambda body: said(None, calls=[called("look", '{"at": "x"}'), called("look", "{oops", "c2")])
    renderer = ChatRenderer()
    conversation = renderer.open([Message("user", "hi")], (TOOL,))
    renderer.extend(conversation)
    reply = await engine.generate(request(token_ids(conversation.path)))
    parsed = renderer.sampled(conversation, reply.ids)
    first, second = parsed.tool_calls
    assert (first.name, dict(first.arguments), first.call_id, first.error) == ("look", {"at": "x"}, "c1", "")
    assert second.error.startswith("the arguments are no JSON")
    conversation.messages.append(Message("tool", "a tree", name="look", call_id="c1"))
    rendered = renderer.extend(conversation)
    assert rendered.kept + len(rendered.ids) == len(conversation.path)
    server.reply = lambda body: said("done")
    await engine.generate(request(token_ids(conversation.path)))
    assert server.bodies[-1]["messages"] == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": [called("look", '{"at": "x"}'), called("look", "{oops", "c2")]},
        {"role": "tool", "content": "a tree", "tool_call_id": "c1"},
    ]
    assert server.bodies[-1]["tools"] == [TOOL.as_openai()]


async def test_calls_without_id_and_with_an_object_for_arguments_are_read(server: ChatServer, engine: OpenAIEngine) -> None:
    call = {"function": {"name": "look", "arguments": {"at": "y"}}}
    server.reply = lambda body: said("", calls=[call])
    reply = await engine.generate(request())
    renderer = ChatRenderer()
    conversation = renderer.open([Message("user", "hi")])
    renderer.extend(conversation)
    (parsed,) = renderer.sampled(conversation, reply.ids).tool_calls
    assert (dict(parsed.arguments), parsed.call_id) == ({"at": "y"}, "call_0")


@pytest.mark.parametrize("trouble", [(429, {"Retry-After": "0"}, "slow down"), (503, {}, "{}"), (0, {}, "")])
async def test_a_busy_endpoint_is_asked_again(trouble: Any, server: ChatServer, engine: OpenAIEngine) -> None:
    server.troubles = [trouble]
    assert (await engine.generate(request())).text == "ok"
    assert len(server.bodies) == 2


async def test_retry_after_is_kept_be_it_seconds_or_a_date(server: ChatServer) -> None:
    in_two = email.utils.format_datetime(email.utils.localtime().replace(microsecond=0))
    async with OpenAIEngine(server.url, "m", seconds=20.0) as engine:
        for header, at_least in (("0.3", 0.3), (in_two, 0.0)):
            server.troubles = [(429, {"Retry-After": header}, "")]
            began = time.monotonic()
            await engine.generate(request())
            assert time.monotonic() - began >= at_least


async def test_no_wait_goes_beyond_the_deadline(server: ChatServer) -> None:
    server.troubles = [(429, {"Retry-After": "3600"}, '{"error": {"message": "rate limit"}}')]
    async with OpenAIEngine(server.url, "m", seconds=20.0) as engine:
        began = time.monotonic()
        with pytest.raises(EngineError, match="429: rate limit") as caught:
            await engine.generate(request())
    assert time.monotonic() - began < 15 and caught.value.retryable and len(server.bodies) == 1


async def test_a_silent_endpoint_ends_at_the_deadline(server: ChatServer) -> None:
    server.hold = asyncio.Event()
    async with OpenAIEngine(server.url, "m", seconds=0.2) as engine:
        with pytest.raises(EngineError, match=r"had no answer within 0\.2 s"):
            await engine.generate(request())


async def test_what_will_not_get_better_is_not_tried_again(server: ChatServer, engine: OpenAIEngine) -> None:
    for trouble, message in (
        ((429, {}, '{"error": {"message": "x", "code": "insufficient_quota"}}'), "quota is used up"),
        ((400, {}, '{"error": {"message": "no such field"}}'), "answered 400: no such field"),
        ((404, {}, '{"error": {"message": "no such model"}}'), "answered 404: no such model"),
        ((200, {}, "<html>"), "no JSON"),
        ((200, {}, "{}"), "lacks 'choices'"),
    ):
        server.troubles = [trouble]
        with pytest.raises(EngineError, match=message) as caught:
            await engine.generate(request())
        assert not caught.value.retryable
    assert len(server.bodies) == 5


async def test_a_context_that_is_too_long_is_told_as_such(server: ChatServer, engine: OpenAIEngine) -> None:
    server.troubles = [(400, {}, '{"error": {"message": "This model\'s maximum context length is 8192 tokens."}}')]
    with pytest.raises(ContextOverflow):
        await engine.generate(request())


async def test_the_key_is_in_no_message_and_no_log(
    server: ChatServer, engine: OpenAIEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.troubles = [(503, {}, f"bad {KEY}"[:4]), (401, {}, f'{{"error": {{"message": "wrong key: {KEY}"}}}}')]
    with pytest.raises(EngineError, match=r"refused the key \(401\)") as caught:
        await engine.generate(request())
    assert KEY not in str(caught.value) + caplog.text + repr(engine)


async def test_what_the_api_cannot_say_is_refused_before_it_is_sent(server: ChatServer, engine: OpenAIEngine) -> None:
    for bad in (
        request(forced=prompt()), request(columns=("entropy",)), request(sampling=Sampling(top_k=5)),
        request(sampling=Sampling(stop_ids=(3,))), request(policy="other"), request(token_ids([1, 2, 3])),
        GenerateRequest("r", "policy", (prompt(), Media("00", "image")), Sampling(), 0),
    ):  # fmt: skip
        with pytest.raises(UserError):
            await engine.generate(bad)
    with pytest.raises(UserError, match="cannot score"):
        await engine.score(ScoreRequest("s", "policy", prompt()))
    with pytest.raises(UserError, match="freeze it"):
        await engine.publish("policy", {}, Version("l", "policy", 1))
    assert not server.bodies


async def test_extra_fields_go_along_and_none_leaves_one_out(server: ChatServer) -> None:
    extra = {"seed": None, "temperature": None, "reasoning_effort": "low"}
    async with OpenAIEngine(server.url, "m", limit="max_completion_tokens", extra=extra) as engine:
        await engine.generate(request())
    assert set(server.bodies[0]) == {"model", "messages", "top_p", "max_completion_tokens", "reasoning_effort"}


async def running(server: ChatServer, engine: OpenAIEngine) -> asyncio.Task[Generation]:
    """A request that the endpoint has."""
    server.hold = asyncio.Event()
    task = asyncio.ensure_future(engine.generate(request()))
    await server.asked.wait()
    return task


async def test_abort_ends_a_request_without_tokens(server: ChatServer, engine: OpenAIEngine) -> None:
    task = await running(server, engine)
    with pytest.raises(UserError, match="already running"):
        await engine.generate(request())
    await engine.abort("nobody")
    await engine.abort("r")
    reply = await task
    assert reply.finish == "abort" and not len(reply.ids) and reply.digest == digest_ids(prompt())


async def test_replies_are_held_back_while_paused(server: ChatServer, engine: OpenAIEngine) -> None:
    task = await running(server, engine)
    await engine.pause()
    assert server.hold is not None
    server.hold.set()
    done, _ = await asyncio.wait([task], timeout=0.1)
    assert not done
    await engine.resume()
    assert (await task).text == "ok"


async def test_requests_wait_while_paused_and_can_be_aborted(server: ChatServer, engine: OpenAIEngine) -> None:
    await engine.pause()
    first, second = [asyncio.ensure_future(engine.generate(request(id=name))) for name in ("a", "b")]
    await asyncio.wait([first], timeout=0.05)
    await engine.abort("a")
    assert (await first).finish == "abort" and not server.bodies
    await engine.resume()
    assert (await second).text == "ok"


async def test_pause_with_abort_ends_what_runs(server: ChatServer, engine: OpenAIEngine) -> None:
    task = await running(server, engine)
    await engine.pause("abort")
    assert (await task).finish == "abort"


def test_a_wrong_address_or_no_model_is_refused() -> None:
    with pytest.raises(UserError, match="must begin with http"):
        OpenAIEngine("api.openai.com/v1", "m")
    with pytest.raises(UserError, match="name one"):
        OpenAIEngine("http://x/v1", "")
