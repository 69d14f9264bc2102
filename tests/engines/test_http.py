"""The transport under every server engine: what it sends, what it takes, and that nothing hangs or passes for a reply."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import orjson
import pytest

from agentrl.engines import connection
from agentrl.engines.http import Refused, Transport
from agentrl.errors import EngineError, UserError

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
WHOLE = b'HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{"a":1}'
BIG = 3 * connection.PIECE


class Server:
    """Answers every request of every connection by `answer`, after it was read whole."""

    def __init__(self, answer: Answer | bytes) -> None:
        self.answer = answer
        self.heads: list[str] = []
        self.bodies: list[bytes] = []
        self.connections = 0
        self.reads_bodies = True
        self.left = asyncio.Event()
        """A connection has ended."""
        self.tasks: set[asyncio.Task[Any] | None] = set()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.tasks.add(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.heads.append(head)
                if self.reads_bodies:
                    length = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
                    self.bodies.append(await reader.readexactly(length))
                if isinstance(self.answer, bytes):
                    writer.write(self.answer)
                else:
                    await self.answer(reader, writer)
                if writer.is_closing():
                    break
        self.left.set()
        writer.transport.abort()
        await asyncio.sleep(0)


@asynccontextmanager
async def serving(answer: Answer | bytes, *, key: str = "") -> AsyncGenerator[tuple[Server, Transport], None]:
    server = Server(answer)
    listening = await asyncio.start_server(server, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    http = Transport("Toy", f"http://127.0.0.1:{port}/base/", connect_s=2.0, api_key=key, dies_of="it does not like you")
    await http.open()
    try:
        yield server, http
    finally:
        await http.close()
        listening.close()
        await listening.wait_closed()
        if server.tasks:
            _, left = await asyncio.wait([task for task in server.tasks if task is not None], timeout=5)
            assert not left, "a connection was left open"


async def call(http: Transport, body: Any = None, *, seconds: float = 5.0) -> Any:
    return await http.call("POST", "/x", body, deadline=asyncio.timeout(seconds), seconds=seconds)


def then_close(data: bytes) -> Answer:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        writer.close()

    return answer


async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


# --- what is sent and taken ------------------------------------------------------------------------------------------------
async def test_request_is_json_with_the_key_and_below_the_urls_path() -> None:
    async with serving(WHOLE, key="secret") as (server, http):
        assert await call(http, {"ids": np.arange(3, dtype=np.int32), "text": "Ä"}) == {"a": 1}
    (head,) = server.heads
    assert head.startswith("POST /base/x HTTP/1.1\r\nHost: 127.0.0.1:") and "Authorization: Bearer secret\r\n" in head
    assert orjson.loads(server.bodies[0]) == {"ids": [0, 1, 2], "text": "Ä"}


async def test_a_get_has_an_empty_body_and_an_empty_reply_is_none() -> None:
    async with serving(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as (server, http):
        assert await http.call("GET", "/y", deadline=asyncio.timeout(5), seconds=5) is None
    assert server.heads[0].startswith("GET /base/y ") and server.bodies == [b""]


@pytest.mark.parametrize(
    "reply",
    [
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{"a\r\n4\r\n":1}\r\n0\r\n\r\n',
        b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE,
        b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nCONTENT-LENGTH: 9\r\n\r\n {"a":1}\n',
    ],
    ids=["chunked", "announced", "blanks round it"],
)
async def test_a_reply_may_be_written_otherwise(reply: bytes) -> None:
    async with serving(reply) as (server, http):
        assert [await call(http), await call(http)] == [{"a": 1}] * 2
    assert server.connections == 1


async def test_a_reply_without_a_length_lasts_until_the_server_closes() -> None:
    async with serving(then_close(b'HTTP/1.1 200 OK\r\n\r\n{"a":1}')) as (server, http):
        assert [await call(http), await call(http)] == [{"a": 1}] * 2
    assert server.connections == 2


async def test_a_reply_byte_by_byte_is_read() -> None:
    async def dripping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for byte in WHOLE:
            writer.write(bytes([byte]))
            await writer.drain()

    async with serving(dripping) as (_, http):
        assert await call(http) == {"a": 1}


async def test_a_body_and_a_reply_of_megabytes_pass_whole() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(server.bodies[-1]) + server.bodies[-1])

    async with serving(echo) as (server, http):
        body = {"weights": "w" * BIG}
        assert await call(http, body) == body
        assert await call(http, {"a": 2}) == {"a": 2}
    assert server.connections == 1


# --- connections -------------------------------------------------------------------------------------------------------------
async def test_a_connection_serves_one_request_after_the_other() -> None:
    async with serving(WHOLE) as (server, http):
        for _ in range(3):
            await call(http)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(4):
                tasks.create_task(call(http))
    assert server.connections == 4


async def test_a_connection_that_was_idle_for_long_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "KEEP_ALIVE_S", -1.0)
    async with serving(WHOLE) as (server, http):
        await call(http)
        await call(http)
    assert server.connections == 2


@pytest.mark.parametrize("reply", [WHOLE.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"), WHOLE.replace(b"1.1", b"1.0")])
async def test_a_connection_that_the_server_will_close_is_not_used_again(reply: bytes) -> None:
    async with serving(reply) as (server, http):
        await call(http)
        await server.left.wait()
        await call(http)
    assert server.connections == 2


async def test_a_connection_that_the_server_closed_while_idle_is_not_used_again() -> None:
    async with serving(then_close(WHOLE)) as (server, http):
        await call(http)
        while http._connections._idle[0].usable:  # type: ignore[union-attr]  # noqa: ASYNC110 - until the end is seen here
            await asyncio.sleep(0)
        assert await call(http) == {"a": 1}
    assert server.connections == 2


async def test_what_comes_unasked_closes_the_connection() -> None:
    async with serving(WHOLE + WHOLE) as (server, http):
        assert await call(http) == {"a": 1}
        await server.left.wait()
        server.answer = WHOLE
        assert await call(http) == {"a": 1}
    assert server.connections == 2


async def test_a_cancelled_call_closes_its_connection_at_once() -> None:
    async with serving(never) as (server, http):
        task = asyncio.ensure_future(call(http))
        while not server.bodies:  # noqa: ASYNC110 - the server runs in this loop and has nothing to wait for
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(server.left.wait(), 5)


async def test_closing_ends_the_calls_under_way() -> None:
    async with serving(never) as (server, http):
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(failure(http))
            while not server.bodies:  # noqa: ASYNC110
                await asyncio.sleep(0)
            await http.close()
        assert "closed here" in str(task.result())
        with pytest.raises(EngineError, match="before the engine was entered"):
            await call(http)


# --- streams ---------------------------------------------------------------------------------------------------------------
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENTS = b': hello\nevent: x\ndata: {"n":1}\n\ndata:{"n":2}\r\n\r\nid: 7\ndata: "\xc3\x84 [DONE]"\n\ndata: [DONE]\n\n'
READ = [{"n": 1}, {"n": 2}, "Ä [DONE]"]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def streamed(*pieces: bytes, last: bytes = b"0\r\n\r\n") -> bytes:
    return CHUNKED + b"".join(map(chunk, pieces)) + last


async def stream(http: Transport, each: Callable[[Any], None], *, seconds: float = 5.0) -> None:
    await http.stream("/x", {"ids": np.arange(3)}, each, deadline=asyncio.timeout(seconds), seconds=seconds)


async def broken(http: Transport) -> tuple[EngineError, list[Any]]:
    """The error of a stream, and what it gave before."""
    got: list[Any] = []
    with pytest.raises(EngineError) as caught:
        await stream(http, got.append)
    assert str(caught.value).startswith(f"Toy at {http.url}: POST /x")
    return caught.value, got


async def test_events_cut_at_any_byte_are_the_same() -> None:
    async with serving(b"") as (server, http):
        for at in range(1, len(EVENTS)):
            server.answer = streamed(EVENTS[:at], EVENTS[at:])
            got: list[Any] = []
            await stream(http, got.append)
            assert got == READ
    assert server.connections == 1 and orjson.loads(server.bodies[0]) == {"ids": [0, 1, 2]}


async def test_an_event_is_told_before_the_next_is_sent() -> None:
    told = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + chunk(b'data: {"n":1}\n'))
        await told.wait()
        writer.write(chunk(b"data: [DONE]\n") + b"0\r\n\r\n")

    async with serving(answer) as (_, http):
        await stream(http, lambda event: told.set())


async def test_an_event_of_megabytes_is_read_whole() -> None:
    text = "w" * BIG
    async with serving(streamed(b'data: "', text.encode(), b'"\n\ndata: [DONE]\n\n')) as (_, http):
        got: list[Any] = []
        await stream(http, got.append)
        assert got == [text]


async def test_a_stream_may_be_longer_than_a_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LARGEST", 50)
    async with serving(streamed(EVENTS)) as (_, http):
        got: list[Any] = []
        await stream(http, got.append)
        assert got == READ


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (b'{"error":{"message":"gone","code":503}}', 503, "gone"),
        (b'{"error":{"message":"gone","code":400}}', 400, "gone"),
        (b'{"error":{"message":"gone","code":"odd"}}', 500, "gone"),
        (b'{"error":"gone"}', 500, "gone"),
    ],
)
async def test_an_error_in_mid_stream_is_a_refusal(error: bytes, status: int, reason: str) -> None:
    async with serving(streamed(b'data: {"n":1}\n\ndata: ' + error + b"\n\ndata: [DONE]\n\n")) as (_, http):
        refused, got = await broken(http)
    assert isinstance(refused, Refused) and (refused.status, refused.reason) == (status, reason) and got == [{"n": 1}]
    assert f"failed in mid-stream with {status}: gone" in str(refused) and refused.retryable == (status >= 500)


@pytest.mark.parametrize(
    ("answer", "why", "again"),
    [
        (then_close(streamed(b'data: {"n":1}\n', b'data: {"n"', last=b"")), "closed the connection", True),
        (streamed(b'data: {"n":1}\n\ndata: {"n":2'), "the stream broke off before its end", True),
        (streamed(b'data: {"n":1}\n\n'), "the stream broke off before its end", True),
        (streamed(b'data: {"n":1}\n\ndata: {oops\n\n'), "no JSON ('{oops')", False),
        (streamed(b'data: {"n":1}\n\n<html>'), "no JSON ('<html>')", False),
    ],
    ids=["connection cut", "event cut", "no end", "no JSON", "a page"],
)
async def test_a_stream_that_breaks_off_tells_why(answer: Answer | bytes, why: str, again: bool) -> None:
    async with serving(answer) as (_, http):
        error, got = await broken(http)
    assert why in str(error) and error.retryable == again and got == [{"n": 1}]


async def test_a_refused_stream_is_a_refusal_and_its_body_no_event() -> None:
    async with serving(b"HTTP/1.1 400 No\r\nContent-Length: 8\r\n\r\ntoo long") as (_, http):
        error, got = await broken(http)
    assert isinstance(error, Refused) and (error.status, error.reason) == (400, "too long") and not got


async def test_the_deadline_bounds_the_whole_stream() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED)
        while not writer.is_closing():
            writer.write(chunk(b'data: {"n":1}\n'))
            await asyncio.sleep(0.01)

    async with serving(drip) as (server, http):
        with pytest.raises(EngineError, match=r"no answer within 0\.1 s"):
            await stream(http, lambda event: None, seconds=0.1)
        await asyncio.wait_for(server.left.wait(), 5)


@pytest.mark.parametrize("error", [BrokenPipeError("its own"), TimeoutError("its own"), KeyError("its own")])
@pytest.mark.parametrize("last", [False, True], ids=["in mid-stream", "at the end"])
async def test_what_a_listener_raises_is_its_own_and_ends_the_request(error: Exception, last: bool) -> None:
    def listen(event: Any) -> None:
        raise error

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + chunk(b'data: {"n":1}\n') + (chunk(b"data: [DONE]\n") + b"0\r\n\r\n" if last else b""))

    async with serving(answer) as (server, http):
        with pytest.raises(type(error), match="its own") as caught:
            await stream(http, listen)
        assert caught.value is error
        if not last:
            await asyncio.wait_for(server.left.wait(), 5)


# --- what goes wrong ---------------------------------------------------------------------------------------------------------
async def failure(http: Transport, *, seconds: float = 5.0, body: Any = None) -> EngineError:
    """The error of a call, which names server and call whatever it is."""
    with pytest.raises(EngineError) as caught:
        await call(http, body, seconds=seconds)
    assert str(caught.value).startswith(f"Toy at {http.url}: POST /x ")
    return caught.value


@pytest.mark.parametrize("slowly", [False, True], ids=["silent", "dripping"])
async def test_the_deadline_bounds_the_whole_reply(slowly: bool) -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with serving(drip if slowly else never) as (server, http):
        error = await failure(http, seconds=0.1)
        assert "no answer within 0.1 s" in str(error) and error.retryable
        await asyncio.wait_for(server.left.wait(), 5)


async def test_a_deadline_may_be_moved_while_the_call_runs() -> None:
    async with serving(never) as (server, http):
        deadline = asyncio.timeout(None)
        task = asyncio.ensure_future(http.call("POST", "/x", deadline=deadline, seconds=7))
        while not server.bodies:  # noqa: ASYNC110
            await asyncio.sleep(0)
        deadline.reschedule(asyncio.get_running_loop().time())
        with pytest.raises(EngineError, match="no answer within 7 s"):
            await task


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\n", WHOLE[:-1]], ids=["at once", "in its head", "in its body"])
async def test_a_reply_that_breaks_off_is_none(sent: bytes) -> None:
    async with serving(then_close(sent)) as (_, http):
        error = await failure(http)
    assert f"closed the connection after {len(sent)} bytes of reply" in str(error) and error.retryable
    assert "check that the server runs (it does not like you)" in str(error)


@pytest.mark.parametrize(
    "sent",
    [b"SSH-2.0-OpenSSH_9.6\r\n", b"\x15\x03\x01\x00\x02\x02\x46", b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}"],
    ids=["another protocol", "TLS", "a length below zero"],
)
async def test_what_is_not_http_is_told_with_its_beginning(sent: bytes) -> None:
    async with serving(sent) as (_, http):
        error = await failure(http)
    assert "not an HTTP/1.1 reply" in str(error) and repr(sent[:5])[2:-1] in str(error)


async def test_a_reply_without_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LARGEST", 100_000)

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"1000\r\n" + b" " * 0x1000 + b"\r\n")
            await writer.drain()

    async with serving(flood) as (server, http):
        assert "goes on after 100000 bytes" in str(await failure(http))
        await asyncio.wait_for(server.left.wait(), 5)


async def test_a_page_in_place_of_json_is_told() -> None:
    async with serving(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>") as (_, http):
        assert "something that is no JSON ('<html>')" in str(await failure(http))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"error": {"message": "too long"}}', "too long"),
        (b'{"error": "too long"}', "too long"),
        (b'{"message": "too long", "code": 400}', "too long"),
        (b"Bad\xffGateway\n", "Bad\ufffdGateway"),
    ],
)
async def test_an_error_status_is_told_with_the_servers_own_words(body: bytes, reason: str) -> None:
    for status, again in ((400, False), (503, True)):
        async with serving(b"HTTP/1.1 %d No\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)) as (_, http):
            error = await failure(http)
        assert isinstance(error, Refused) and (error.status, error.reason, error.retryable) == (status, reason, again)


async def test_an_answer_before_the_body_was_read_is_taken() -> None:
    refused = b"HTTP/1.1 413 No\r\nContent-Length: 9\r\n\r\ntoo large"
    async with serving(refused) as (server, http):
        server.reads_bodies = False
        error = await failure(http, body={"weights": "w" * 20 * BIG})
    assert isinstance(error, Refused) and error.reason == "too large"


async def test_a_port_where_nobody_listens_is_told() -> None:
    async with serving(WHOLE) as (_, http):
        pass
    await http.open()
    error = await failure(http)
    await http.close()
    assert "Connect call failed" in str(error) and "check that the server runs" in str(error) and error.retryable


async def test_a_connection_that_does_not_come_about_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(*args: Any, **more: Any) -> None:
        await asyncio.get_running_loop().create_future()

    async with serving(WHOLE) as (_, http):
        monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", hang)
        http._connections._connect_s = 0.01  # type: ignore[union-attr]
        assert "no connection within 0.01 s" in str(await failure(http))


async def test_a_body_that_is_no_json_is_refused_before_it_is_sent() -> None:
    async with serving(WHOLE) as (server, http):
        with pytest.raises(UserError, match="POST /x cannot be sent as JSON"):
            await call(http, {"ids": {1, 2}})
    assert not server.heads


@pytest.mark.parametrize("url", ["127.0.0.1:30000", "ftp://host", "http://", "http://me:secret@host", "http://host\r\nX: y"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UserError):
        Transport("Toy", url, connect_s=1)


def test_a_key_cannot_add_a_header() -> None:
    with pytest.raises(UserError, match="printable ASCII"):
        Transport("Toy", "http://host", connect_s=1, api_key="k\r\nX-Admin: 1")
