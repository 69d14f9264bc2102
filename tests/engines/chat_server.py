"""A chat completions endpoint on loopback: `reply(body)` decides what it says, `troubles` come first."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from typing import Any

from aiohttp import web

Reply = Callable[[dict[str, Any]], dict[str, Any]]


def said(content: str | None = "", *, calls: list[dict[str, Any]] | None = None, finish: str = "stop") -> dict[str, Any]:
    """A message with its finish reason, in the shape of the API."""
    message = {"role": "assistant", "content": content, "refusal": None, **({"tool_calls": calls} if calls else {})}
    return {"index": 0, "message": message, "logprobs": None, "finish_reason": "tool_calls" if calls else finish}


def called(name: str, arguments: str, call_id: str = "c1") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


class ChatServer:
    """`async with ChatServer(reply) as server: OpenAIEngine(server.url, "m")`."""

    def __init__(self, reply: Reply = lambda body: said("ok")) -> None:
        self.reply = reply
        self.troubles: list[tuple[int, dict[str, str], str]] = []
        """(status, headers, body) of the next answers; status 0 closes the connection unanswered."""
        self.hold: asyncio.Event | None = None
        self.asked = asyncio.Event()
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.url = ""
        self._ids = itertools.count()
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> ChatServer:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        self.bodies.append(body)
        self.asked.set()
        self.keys.append(request.headers.get("Authorization"))
        if self.troubles:
            status, headers, text = self.troubles.pop(0)
            if not status and request.transport is not None:
                request.transport.abort()
            return web.Response(status=status or 500, headers=headers, text=text)
        if self.hold is not None:
            await self.hold.wait()
        usage = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}
        return web.json_response({
            "id": f"chatcmpl-{next(self._ids)}", "object": "chat.completion", "created": 1, "model": body["model"],
            "choices": [self.reply(body)], "usage": usage,
        })  # fmt: skip
