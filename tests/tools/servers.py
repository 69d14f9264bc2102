"""A retrieval server on loopback, in Search-R1's protocol, over the documents of a real `Search`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from agentrl_tools.search import Search

CORPUS = [
    {"id": "pe", "title": "Peru", "text": "capital: Lima\ncurrency: Sol"},
    {"id": "li", "title": "Lima", "text": "country: Peru\nnearest city: Callao"},
    {"id": "ca", "title": "Callao", "text": "country: Peru\nnearest city: Lima"},
    {"id": "sp", "title": "São Paulo", "text": "country: Brazil"},
]
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Served:
    """A running server, and the bodies that it was sent."""

    url: str = ""
    asked: list[Any] = field(default_factory=list)


def searching(search: Search, served: Served) -> Answer:
    """What Search-R1's server answers."""

    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        served.asked.append(body)
        result = []
        for query in body["queries"]:
            found = search.find(query)[: body["topk"]]
            documents = [{"id": each.id, "contents": f'"{each.title}"\n{each.text}'} for each in found]
            scored = [{"document": document, "score": 1.0 / at} for at, document in enumerate(documents, 1)]
            result.append(scored if body["return_scores"] else documents)
        return web.json_response({"result": result})

    return answer


@asynccontextmanager
async def serving(answer: Answer | None = None) -> AsyncIterator[Served]:
    """A server that answers POST /retrieve; without `answer`, over the corpus above."""
    served = Served()
    application = web.Application()
    application.router.add_post("/retrieve", answer or searching(Search(CORPUS, top_k=3), served))
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        served.url = f"http://{host}:{port}/retrieve"
        yield served
    finally:
        await runner.cleanup()
