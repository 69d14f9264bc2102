"""CPU of the runtime a turn: episodes of 4 model turns, each with one tool call, without network, weights or rendering.

The engine hands out a ready reply at once, the tool a ready text, prompts are ready ids of 512 tokens. Each row adds a layer:

    floor     the same two coroutine calls a turn under plain asyncio, an episode a task
    tasks     the floor, with a task for each call, as anything that can be cancelled or timed out needs
    journal   runtime and journal: the workflow's own loop, two effects a turn, their entries, the episode's end
    team      and what an agent's turn is besides: request digests, the turn's record, seeds, the tool's checks and limits
    store     and all of it durable in SQLite (the writer's thread counts, too)

    python benchmarks/runtime.py [--episodes 512] [--repeats 5]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np

from agentrl.agent import Agent
from agentrl.effect import digest_request
from agentrl.engines.contract import EngineInfo, GenerateRequest, Generation, Offers
from agentrl.episode import Sampling, Version, VersionSpan, digest_ids, token_ids
from agentrl.limits import Limits
from agentrl.rendering.contract import Rendered, ToolRequest
from agentrl.runtime.execution import Execution, Program, Surroundings
from agentrl.runtime.scope import EffectTasks
from agentrl.runtime.threads import DaemonThreads
from agentrl.runtime.turnstile import Turnstile
from agentrl.store.contract import EpisodeHead
from agentrl.store.sqlite import SQLiteStore
from agentrl.team import Seat, Team
from agentrl.tool import as_tools
from agentrl.toolcall import call_tool
from agentrl.workflow import Ask, Asked, Outcome

TURNS = 4
PROMPT = token_ids(np.arange(512))
REPLY = token_ids(np.arange(64))
GENERATION = Generation(
    REPLY,
    np.zeros(64, np.float32),
    (VersionSpan(Version("bench", "policy", 0), 0, 64),),
    "stop",
    digest_ids(PROMPT, REPLY),
)
AGENT = Agent("agent")


class Ready:
    """An engine that answers at once."""

    info = EngineInfo("ready", 1 << 15, 1 << 20, Offers())

    async def generate(self, request: GenerateRequest | None) -> Generation:
        return GENERATION


class Ids:
    """What of a renderer a ready prompt needs."""

    tokenizer_id = template_id = "ready"
    stop_ids = (0,)

    def decode(self, ids: Any) -> str:
        return "ready"


async def lookup(key: str) -> str:
    """Look `key` up."""
    return "value"


ENGINE: Any = Ready()
SEAT = Seat("policy", ENGINE, Ids(), Sampling())  # type: ignore[arg-type]
TOOLS = as_tools([lookup])


async def bare(task: Any, team: Any) -> None:
    for _ in range(TURNS):
        await ENGINE.generate(None)
        await lookup("x")


async def bare_tasks(task: Any, team: Any) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(TURNS):
        await loop.create_task(ENGINE.generate(None))
        await loop.create_task(lookup("x"))


MODEL_ASK = digest_request("model")
TOOL_ASK = digest_request("tool")


async def journalled(task: Any, team: Team) -> None:
    async def model(asked: Asked) -> Outcome:
        await ENGINE.generate(None)
        return Outcome(1)

    async def tool(asked: Asked) -> Outcome:
        return Outcome(await lookup("x"))

    for _ in range(TURNS):
        await team.world.perform(Ask("model", "agent", MODEL_ASK, "", model))
        await team.world.perform(Ask("tool", "lookup", TOOL_ASK, "", tool))


async def whole(task: Any, team: Team) -> None:
    rendered = Rendered(0, PROMPT, ())
    after = None
    for n in range(TURNS):
        after = await team.sample(AGENT, rendered, PROMPT, after=after, max_tokens=64, state="")
        await call_tool(team, TOOLS, after.turn, ToolRequest("lookup", {"key": "x"}, f"call_{n}"))


async def plainly(workflow: Callable[[Any, Any], Awaitable[None]], episodes: int) -> None:
    async with asyncio.TaskGroup() as tasks:
        for _ in range(episodes):
            tasks.create_task(workflow(None, None))  # type: ignore[arg-type]


async def executed(workflow: Callable[[Any, Team], Any], episodes: int, store: SQLiteStore | None = None) -> None:
    threads = DaemonThreads()
    async with EffectTasks() as scope, asyncio.TaskGroup() as tasks:
        around = Surroundings(scope, Turnstile(), threads, Limits(), store)

        async def one(n: int) -> None:
            head = EpisodeHead(f"e{n}", "g", n, episodes, None, n, "bench")
            program = Program(lambda world: workflow(None, Team(world, {"agent": AGENT}, {"agent": SEAT}, threads.run)), None)
            if store is not None:
                store.begin(head)
            _, tail = await Execution(head, (), program, around).run()
            assert tail.status == "done", tail
            if store is not None:
                store.finish(head.id, tail)

        for n in range(episodes):
            tasks.create_task(one(n))
    if store is not None:
        await store.flush()
    threads.close()


def stored(episodes: int) -> None:
    with tempfile.TemporaryDirectory() as folder, SQLiteStore(Path(folder) / "store.db") as store:
        asyncio.run(executed(whole, episodes, store))


LAYERS: dict[str, Callable[[int], None]] = {
    "floor": lambda episodes: asyncio.run(plainly(bare, episodes)),
    "tasks": lambda episodes: asyncio.run(plainly(bare_tasks, episodes)),
    "journal": lambda episodes: asyncio.run(executed(journalled, episodes)),
    "team": lambda episodes: asyncio.run(executed(whole, episodes)),
    "store": stored,
}


def cpu_a_turn(run: Callable[[int], None], episodes: int, repeats: int) -> float:
    """Milliseconds of CPU of this process, all threads, a turn; the best of several runs."""
    best = float("inf")
    for _ in range(repeats):
        gc.collect()
        began = time.process_time()
        run(episodes)
        best = min(best, time.process_time() - began)
    return 1e3 * best / episodes / TURNS


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    arguments.add_argument("--episodes", type=int, default=512)
    arguments.add_argument("--repeats", type=int, default=5)
    given = arguments.parse_args()
    spent = {name: cpu_a_turn(run, given.episodes, given.repeats) for name, run in LAYERS.items()}
    print(f"{given.episodes} episodes at once, {TURNS} turns each, best of {given.repeats}\n")
    print(f"{'layer':8} {'CPU ms a turn':>14} {'x floor':>9} {'x tasks':>9}")
    for name, cpu in spent.items():
        print(f"{name:8} {cpu:14.4f} {cpu / spent['floor']:9.1f} {cpu / spent['tasks']:9.1f}")


if __name__ == "__main__":
    main()
