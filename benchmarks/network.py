"""CPU of a model call over the network: thousands of live episodes against a server that only takes time.

Each episode is an agent's model-tool loop of 4 turns. The server (network_server.py) speaks SGLang's /generate (ids in, ids
and log-probs out) and OpenAI's /v1/chat/completions (log-probs too), is a process of its own on a core of its own, and answers
after 2 +- 1 s, or 0.2 +- 0.1 s. The rows, each in a process of its own:

    aiohttp   the floor: a plain loop over /generate, json in and out, ready ids, nothing kept but the episode's path
    engine    the same prompts by `SGLangEngine`: checks, seeds, versions, digests, log-probs as arrays
    runtime   all of it: runtime, journal, agent, tool, real template and tokenizer, every id and log-prob durable in SQLite
    httpx     the plain loop by httpx
    openai    the plain loop by the OpenAI client, messages for ids
    long      8 episodes of the runtime, each with a first prompt of 125,000 tokens

CPU is of the process, all threads; the lag is how late a timer of 20 ms comes; memory is what the resident set grew at its
peak, over the live episodes; `server` is the server's CPU, which shows that it was not the limit. httpx and openai run fewer
episodes at once, or they would not come to an end.

    pip install -e ".[bench,sglang]"
    python benchmarks/network.py [--live 2000] [--latency 2 0.2] [--rows runtime aiohttp]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from live_episodes import CALL, TURNS, answer, byte_level, lookup, resident
from network_server import SPREAD, serve

from agentrl.engines.contract import GenerateRequest
from agentrl.engines.sglang import SGLangEngine
from agentrl.episode import Sampling, token_ids
from agentrl.experiment import Experiment, Policy
from agentrl.limits import Limits
from agentrl.rendering.contract import Message
from agentrl.rendering.template import TemplateRenderer
from agentrl.runtime import Runtime
from agentrl.store.sqlite import SQLiteStore
from agentrl.tool import as_tools

TICK = 0.02
VOCAB, MAX_TOKENS = 261, 256
SLOW = ("httpx", "openai")
LONG_LIVE, LONG = 8, "The quick brown fox jumps over the lazy dog. " * 2780
Episodes = Callable[[int], Awaitable[None]]
"""Runs the n-th episode to its end."""


# --- the rows ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Ready:
    """What a plain loop needs of an episode: the ids and messages that are added before each turn."""

    ids: list[list[int]]
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]


async def ready(renderer: TemplateRenderer) -> Ready:
    """The context of each turn as the runtime renders it."""
    (tool,) = as_tools([lookup]).values()
    found = await lookup("")
    question = "What is the capital of country 1234?"
    conversation = renderer.open([Message("user", question)], [tool.spec])
    ids: list[list[int]] = []
    for _ in range(TURNS):
        ids.append(renderer.extend(conversation).ids.tolist())
        renderer.sampled(conversation, token_ids([*renderer.encode(CALL), renderer.stop_ids[0]]))
        conversation.messages.append(Message("tool", found, name="lookup"))
    schema = {"type": "object", "properties": {"key": {"type": "string"}}, "required": ["key"]}
    function = {"name": "lookup", "description": tool.spec.description, "parameters": schema}
    messages = [{"role": "user", "content": question}, {"role": "tool", "tool_call_id": "call_0", "content": found}]
    return Ready(ids, messages, [{"type": "function", "function": function}])


def plain_body(path: list[int], stops: tuple[int, ...]) -> dict[str, Any]:
    params = {"temperature": 1.0, "max_new_tokens": MAX_TOKENS, "sampling_seed": 1, "stop_token_ids": stops}
    return {"input_ids": path, "sampling_params": params, "return_logprob": True, "return_prompt_token_ids": True}


def take(path: list[int], reply: Any) -> None:
    """Every id and log-prob of a reply is read."""
    path += reply["output_ids"]
    logprobs = [entry[0] for entry in reply["meta_info"]["output_token_logprobs"]]
    assert len(logprobs) == len(reply["output_ids"])


@asynccontextmanager
async def with_aiohttp(url: str, live: int, renderer: TemplateRenderer) -> AsyncGenerator[Episodes, None]:
    import aiohttp

    given, stops = await ready(renderer), renderer.stop_ids
    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as http:

        async def one(n: int) -> None:
            path: list[int] = []
            for added in given.ids:
                path += added
                async with http.post("/generate", json=plain_body(path, stops)) as response:
                    take(path, await response.json())
                await lookup("")

        yield one


@asynccontextmanager
async def with_httpx(url: str, live: int, renderer: TemplateRenderer) -> AsyncGenerator[Episodes, None]:
    import httpx

    given, stops = await ready(renderer), renderer.stop_ids
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as http:

        async def one(n: int) -> None:
            path: list[int] = []
            for added in given.ids:
                path += added
                take(path, (await http.post("/generate", json=plain_body(path, stops))).json())
                await lookup("")

        yield one


@asynccontextmanager
async def with_openai(url: str, live: int, renderer: TemplateRenderer) -> AsyncGenerator[Episodes, None]:
    import httpx
    from openai import AsyncOpenAI

    given = await ready(renderer)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    client = httpx.AsyncClient(timeout=None, limits=limits)
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", http_client=client, max_retries=0, timeout=None) as http:

        async def one(n: int) -> None:
            question, found = given.messages
            messages: list[Any] = [question]
            for _ in range(TURNS):
                reply = await http.chat.completions.create(
                    model="m", messages=messages, tools=given.tools, logprobs=True, max_tokens=MAX_TOKENS
                )
                choice = reply.choices[0]
                assert choice.logprobs is not None and choice.logprobs.content
                assert all(entry.logprob <= 0 for entry in choice.logprobs.content)
                messages += [choice.message, found]
                await lookup("")

        yield one


@asynccontextmanager
async def with_engine(url: str, live: int, renderer: TemplateRenderer) -> AsyncGenerator[Episodes, None]:
    given, sampling = await ready(renderer), Sampling(stop_ids=renderer.stop_ids)
    async with SGLangEngine(url, vocab_size=VOCAB) as engine:

        async def one(n: int) -> None:
            path = token_ids([])
            for turn, added in enumerate(given.ids):
                prompt = np.concatenate((path, token_ids(added)))
                reply = await engine.generate(GenerateRequest(f"{n}|{turn}", "policy", (prompt,), sampling, n))
                path = np.concatenate((prompt, reply.ids))
                await lookup("")

        yield one


@asynccontextmanager
async def with_runtime(url: str, live: int, renderer: TemplateRenderer, text: str = "") -> AsyncGenerator[Episodes, None]:
    experiment = Experiment(answer, policies=Policy("policy"), limits=Limits(concurrency=live, deadline=600.0))
    with tempfile.TemporaryDirectory() as made, SQLiteStore(Path(made) / "store.db") as store:
        async with (
            SGLangEngine(url, vocab_size=VOCAB) as engine,
            Runtime(experiment, engine=engine, renderers={"policy": renderer}, store=store) as runtime,
        ):

            async def one(n: int) -> None:
                episode = await runtime.run(f"{text}What is the capital of country {n}?", group=f"g{n}")
                assert (episode.status, len(episode.turns)) == ("done", TURNS), episode.failure
                assert not np.isnan(episode.turns[0].logprobs).any() and not episode.turns[0].untrained

            yield one
            await store.flush()


ROWS = {
    "aiohttp": with_aiohttp,
    "engine": with_engine,
    "runtime": with_runtime,
    "httpx": with_httpx,
    "openai": with_openai,
    "long": partial(with_runtime, text=LONG),
}


# --- measuring -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Measured:
    """One row of the table."""

    cpu_ms: float
    turns_a_second: float
    wall: float
    lag_p99: float
    lag_max: float
    kb_an_episode: float


async def measured(name: str, url: str, live: int, episodes: int, renderer: TemplateRenderer) -> Measured:
    late: list[float] = []
    largest = before = resident()

    async def tick() -> None:
        nonlocal largest
        asked = time.monotonic()
        while True:
            await asyncio.sleep(TICK)
            now = time.monotonic()
            late.append(now - asked - TICK)
            asked, largest = now, max(largest, resident())

    waiting = iter(range(episodes))
    gc.collect()
    before, cpu, wall = resident(), time.process_time(), time.monotonic()
    async with asyncio.TaskGroup() as around, ROWS[name](url, live, renderer) as one:

        async def slot() -> None:
            for n in waiting:
                await one(n)

        ticking = around.create_task(tick())
        async with asyncio.TaskGroup() as slots:
            for _ in range(live):
                slots.create_task(slot())
        ticking.cancel()
    cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    turns = episodes * TURNS
    lags = [1e3 * float(np.quantile(late, share)) for share in (0.99, 1.0)]
    return Measured(1e3 * cpu / turns, turns / wall, wall, *lags, (largest - before) / live / 1024)


def cpu_of(process: int) -> float:
    """Seconds of CPU that another process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pin(which: int) -> None:
    """The server on one core, what is measured on another, where there are two."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[which % len(cores)]})


def compared(name: str, latency: float, live: int, rounds: int) -> tuple[Measured, float]:
    """A row in a process of its own, against a server of its own; and the server's CPU in ms a turn."""
    with socket.create_server(("127.0.0.1", 0), backlog=8192) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        given = [sys.executable, __file__, "--latency", str(latency)]
        server = subprocess.Popen([*given, "--serve", str(listening.fileno())], pass_fds=[listening.fileno()])
    try:
        row = [*given, "--row", name, "--url", url, "--live", str(live), "--rounds", str(rounds)]
        told = Measured(**json.loads(subprocess.run(row, check=True, stdout=subprocess.PIPE, text=True).stdout))
        return told, 1e3 * cpu_of(server.pid) / live / rounds / TURNS
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    arguments.add_argument("--live", type=int, default=2000, help="episodes at once")
    arguments.add_argument("--slow-live", type=int, default=512, help="episodes at once of httpx and openai")
    arguments.add_argument("--rounds", type=int, default=2, help="episodes one after another in each place")
    arguments.add_argument("--latency", type=float, nargs="+", default=[2.0, 0.2])
    arguments.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    for inner in ("--serve", "--row", "--url"):
        arguments.add_argument(inner, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.serve:
        pin(0)
        asyncio.run(serve(socket.socket(fileno=int(given.serve)), given.latency[0]))
    elif given.row:
        pin(1)
        gc.set_threshold(50_000, 20, 50)  # as `train` does
        with tempfile.TemporaryDirectory() as made:
            renderer = byte_level(Path(made))
        told = asyncio.run(measured(given.row, given.url, given.live, given.live * given.rounds, renderer))
        print(json.dumps(asdict(told)))
    else:
        table(given)


def table(given: argparse.Namespace) -> None:
    heads = ("live", "CPU ms a turn", "x aiohttp", "turns/s", "wall s", "lag p99 ms", "max", "kB an episode", "server")
    widths = (6, 14, 10, 9, 8, 11, 8, 14, 8)
    for latency in given.latency:
        print(f"\n{TURNS} turns an episode, answered after {latency} s +- {latency * SPREAD} s\n")
        print(" " * 8, *(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True)))
        least = 0.0
        for name in given.rows:
            live = LONG_LIVE if name == "long" else min(given.live, given.slow_live) if name in SLOW else given.live
            told, server = compared(name, latency, live, given.rounds)
            least = least or told.cpu_ms
            values = (live, told.cpu_ms, told.cpu_ms / least, told.turns_a_second, told.wall, told.lag_p99, told.lag_max)
            values = (*values, told.kb_an_episode, server)
            digits = (0, 2, 1, 0, 1, 0, 0, 0, 2)
            cells = (f"{value:{width}.{digit}f}" for value, width, digit in zip(values, widths, digits, strict=True))
            print(f"{name:8}", *cells, flush=True)


if __name__ == "__main__":
    main()
