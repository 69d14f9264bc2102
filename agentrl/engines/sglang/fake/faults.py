"""Faults that a test asks of the fake server."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Literal, TypeAlias

from aiohttp import web

FaultKind: TypeAlias = Literal["drop", "garbage", "drip", "500", "never", "stream_error", "stream_cut", "stream_end"]
"""Close the connection unanswered, answer 200 with a page of HTML, one byte at a time, status 500, no answer at all; or, after
two events of a stream: an error in the place of the third, the connection closed, the stream ended as if it were whole."""


@dataclass(slots=True)
class Fault:
    """What goes wrong at a path, and how many times more."""

    kind: FaultKind
    times: int


async def answer(fault: FaultKind, request: web.Request, genuine: web.StreamResponse | None) -> web.StreamResponse:
    """The faulty answer; `genuine` is what a drip gives, slowly."""
    if fault == "drop":
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=500)
    if fault == "garbage":
        return web.Response(text="<html><body>502 Bad Gateway</body></html>", content_type="text/html")
    if fault == "500":
        return web.json_response({"error": {"message": "Internal server error"}}, status=500)
    if fault == "never":
        await asyncio.Event().wait()
    body = genuine.body if isinstance(genuine, web.Response) and isinstance(genuine.body, bytes) else b"{}"
    slow = web.StreamResponse(headers={"Content-Type": "application/json"})
    await slow.prepare(request)
    for byte in body:
        await slow.write(bytes([byte]))
        await asyncio.sleep(0.05)
    return slow
