"""Searches over HTTP: `Retriever` with and without batches, beside one POST of all queries at once, which is the floor.

The server is a process of its own that speaks Search-R1's protocol over the atlas of search_qa (2,214 documents, BM25). Each
round asks `--queries` different questions at the same time, as so many live episodes would. CPU is that of both processes.

    python benchmarks/retriever.py [--queries 512] [--repeats 5]
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import subprocess
import sys
import time

import aiohttp
from aiohttp import web

from agentrl_tools.retriever import Retriever
from agentrl_workflows.search_qa.retrieval import search_of


def serve() -> None:
    """Prints the server's address, and serves until its standard input ends."""
    search = search_of(0)
    used = [0]

    async def retrieve(request: web.Request) -> web.Response:
        used[0] += 1
        asked = await request.json()
        found = [search.find(query)[: asked["topk"]] for query in asked["queries"]]
        result = [
            [{"document": {"id": each.id, "contents": f'"{each.title}"\n{each.text}'}, "score": 1.0} for each in documents]
            for documents in found
        ]
        return web.json_response({"result": result})

    async def spent(request: web.Request) -> web.Response:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return web.json_response([usage.ru_utime + usage.ru_stime, used[0]])

    async def main() -> None:
        application = web.Application(client_max_size=1 << 28)
        application.add_routes([web.post("/retrieve", retrieve), web.get("/spent", spent)])
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await runner.cleanup()

    asyncio.run(main())


async def measure(url: str, queries: list[str], repeats: int) -> None:
    """One row a way of asking: the best of `repeats`."""
    print(f"{'':34}{'CPU us a query':>15}{'ratio':>8}{'wall ms':>10}{'requests':>10}")
    async with aiohttp.ClientSession() as session:

        async def spent() -> tuple[float, int]:
            async with session.get(f"{url}/spent") as response:
                seconds, requests = await response.json()
            return seconds + time.process_time(), requests

        floor = 0.0
        ways = {"one POST of all": None, "Retriever": {}, "Retriever, batch=1": {"batch": 1, "window": 0.0}}
        for name, settings in ways.items():
            tool = Retriever(f"{url}/retrieve", topk=1, **(settings or {})) if settings is not None else None
            best: tuple[float, float, int] | None = None
            for _ in range(repeats + 1):  # the first one warms up
                before, began = await spent(), time.perf_counter()
                if tool is None:
                    body = {"queries": queries, "topk": 1, "return_scores": True}
                    async with session.post(f"{url}/retrieve", json=body) as response:
                        assert len((await response.json())["result"]) == len(queries)
                else:
                    async with asyncio.TaskGroup() as tasks:
                        for query in queries:
                            tasks.create_task(tool(query))
                wall, after = time.perf_counter() - began, await spent()
                row = (after[0] - before[0], wall, after[1] - before[1])
                best = row if best is None else min(best, row)
            assert best is not None
            cpu = best[0] / len(queries) * 1e6
            floor = floor or cpu
            print(f"{name:34}{cpu:15.0f}{cpu / floor:8.1f}{best[1] * 1000:10.1f}{best[2]:10}")
            if tool is not None:
                await tool.aclose()


def main() -> None:
    """Starts the server and prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--queries", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
        return
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        queries = [f"currency of city {number}" for number in range(arguments.queries)]
        asyncio.run(measure(url, queries, arguments.repeats))
        assert server.stdin is not None
        server.stdin.close()


if __name__ == "__main__":
    main()
