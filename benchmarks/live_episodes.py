"""Thousands of live episodes in one process, against an engine in it that only takes time.

Each episode is an agent's model-tool loop of 4 turns: a prompt, a reply after 4 to 6 seconds (5 on average), read, its tool
called, the result rendered, again. The rows, each in a process of its own:

    floor       as many coroutines that only wait as long for the same engine, a task each
    runtime     runtime, journal, agent loop, tool and engine; prompts are ready ids, replies are read already
    rendered    and all text rendered, encoded, decoded and parsed by a real tokenizer and chat template
    stored      and all of it durable in SQLite

CPU is of the process; the lag is how late a timer of 5 ms comes, over the whole run; memory is the growth of the resident set
from before the first episode to when all have asked for their first turn, over their number. The collector of cycles is set
to 50,000 allocations, as a process that holds thousands of episodes should set it.

    python benchmarks/live_episodes.py [--episodes 4096]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from agentrl.agent import Agent
from agentrl.engines.contract import GenerateRequest, Generation
from agentrl.engines.mock import Mock
from agentrl.episode import IntArray, Sampling, VersionSpan, digest_ids, token_ids
from agentrl.experiment import Experiment, Policy
from agentrl.limits import Limits
from agentrl.rendering.contract import Conversation, Message, Parsed, Rendered, ToolRequest, ToolSpec
from agentrl.rendering.template import TemplateRenderer
from agentrl.runtime import Runtime
from agentrl.store.sqlite import SQLiteStore
from agentrl.team import Team
from agentrl.workflow import workflow

TURNS = 4
TICK = 0.02
"""Seconds between two looks at the loop's lag; each costs CPU of its own, which the rows contain."""
WIDTHS = (14, 8, 11, 6, 7, 14, 7)
TEMPLATE = (
    "{% if tools %}<|im_start|>system\nTools:{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for call in m.tool_calls %}<tool_call>\n{{ call.function | tojson }}\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CALL = '<tool_call>\n{"name": "lookup", "arguments": {"key": "the capital of Peru"}}\n</tool_call>'


async def lookup(key: str) -> str:
    """Look `key` up in the documents."""
    return "Lima is the capital of Peru, and its largest city. " * 4


@workflow(Agent("agent", tools=[lookup], max_turns=TURNS, no_progress=0))
async def answer(task: str, team: Team) -> str:
    return (await team["agent"].run(task)).text


def byte_level(folder: Path) -> TemplateRenderer:
    """A tokenizer of bytes with ChatML's tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ("<tool_call>", "</tool_call>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"chat_template": TEMPLATE, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return TemplateRenderer.from_folder(folder)


class Ready:
    """Renders and reads nothing: every message adds the same ids, every reply is known."""

    def __init__(self, like: TemplateRenderer) -> None:
        self.tokenizer_id, self.template_id, self.stop_ids = like.tokenizer_id, like.template_id, like.stop_ids
        self.encode = like.encode
        self.ids = token_ids(range(100))
        self.call = Parsed("", CALL, tool_calls=(ToolRequest("lookup", {"key": "the capital of Peru"}, "call_0"),))
        self.answer = Parsed("It is Lima.", "It is Lima.")

    def open(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), **options: Any) -> Conversation:
        return Conversation(list(messages), tuple(tools))

    def extend(self, conversation: Conversation) -> Rendered:
        kept = len(conversation.path)
        conversation.path.extend(range(100))
        return Rendered(kept, self.ids, ())

    def sampled(self, conversation: Conversation, ids: IntArray) -> Parsed:
        conversation.path.extend(ids.tolist())
        return self.call if len(ids) > 20 else self.answer

    def decode(self, ids: IntArray) -> str:
        return CALL


class Calling(Mock):
    """Takes its time as a mock does; three turns call the tool, the fourth answers."""

    def __init__(self, renderer: Any) -> None:
        super().__init__(lambda rng: rng.uniform(4.0, 6.0), vocab_size=261)
        stop = renderer.stop_ids[0]
        self.call, self.answer = (token_ids([*renderer.encode(text), stop]) for text in (CALL, "It is Lima."))
        self.nan = np.full(256, np.nan, np.float32)
        version = self.version("policy")
        self.spans = [(VersionSpan(version, 0, len(ids)),) for ids in (self.call, self.answer)]

    async def generate(self, request: GenerateRequest) -> Generation:
        await super().generate(request)
        last = int(request.id.rpartition(":")[2]) >= 2 * (TURNS - 1)
        ids: IntArray = self.answer if last else self.call
        span = self.spans[last]
        return Generation(ids, self.nan[: len(ids)], span, "stop", digest_ids(request.prompt, ids))


def resident() -> int:
    """Bytes of memory that the process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@dataclass(frozen=True)
class Measured:
    """One row of the table."""

    cpu_ms: float
    wall: float
    lag_p50: float
    lag_p99: float
    lag_max: float
    kb_an_episode: float


async def measured(run: Callable[[], Coroutine[Any, Any, None]], waiting: Callable[[], int], episodes: int) -> Measured:
    late: list[float] = []
    memory = [0.0]

    async def tick() -> None:
        asked = time.monotonic()
        while True:
            await asyncio.sleep(TICK)
            now = time.monotonic()
            late.append(now - asked - TICK)
            asked = now
            if not memory[0] and waiting() == episodes:
                memory[0] = resident() - before

    gc.collect()
    before, cpu, wall = resident(), time.process_time(), time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        ticking = tasks.create_task(tick())
        await run()
        ticking.cancel()
    cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    lags = [1e3 * float(np.quantile(late, share)) for share in (0.5, 0.99, 1.0)]
    return Measured(1e3 * cpu / episodes / TURNS, wall, *lags, memory[0] / episodes / 1024)


async def floor(episodes: int, renderer: TemplateRenderer) -> Measured:
    engine = Calling(renderer)
    prompt, sampling = token_ids(range(200)), Sampling(stop_ids=renderer.stop_ids)

    async def one(n: int) -> None:
        for turn in range(TURNS):
            await engine.generate(
                GenerateRequest(f"{n}|:{2 * turn}", "policy", (prompt,), sampling, random.Random(n).getrandbits(60))
            )

    async def run() -> None:
        async with asyncio.TaskGroup() as tasks:
            for n in range(episodes):
                tasks.create_task(one(n))

    return await measured(run, lambda: engine.running, episodes)


async def live(episodes: int, renderer: Any, store: SQLiteStore | None) -> Measured:
    engine = Calling(renderer)
    experiment = Experiment(answer, policies=Policy("policy"), limits=Limits(concurrency=episodes, deadline=120.0))
    async with Runtime(experiment, engine=engine, renderers={"policy": renderer}, store=store) as runtime:

        async def run() -> None:
            async with asyncio.TaskGroup() as tasks:
                for n in range(episodes):
                    tasks.create_task(one(n))

        async def one(n: int) -> None:
            episode = await runtime.run(f"What is the capital of country {n}?", group=f"g{n}")
            assert (episode.status, len(episode.turns)) == ("done", TURNS), episode.failure

        return await measured(run, lambda: engine.running, episodes)


def row(name: str, episodes: int) -> Measured:
    """Measures in this process."""
    gc.set_threshold(50_000, 20, 50)  # at the default the collector walks all live episodes every few turns
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
        rendering = byte_level(Path(made))
        if name == "floor":
            return asyncio.run(floor(episodes, rendering))
        store = stack.enter_context(SQLiteStore(Path(made) / "store.db")) if name == "stored" else None
        return asyncio.run(live(episodes, Ready(rendering) if name == "runtime" else rendering, store))


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    arguments.add_argument("--episodes", type=int, default=4096)
    arguments.add_argument("--row")
    given = arguments.parse_args()
    if given.row:
        print(json.dumps(asdict(row(given.row, given.episodes))))
        return
    print(f"{given.episodes} live episodes of {TURNS} turns of 4 to 6 s\n")
    heads = ("CPU ms a turn", "x floor", "lag p50 ms", "p99", "max", "kB an episode", "wall s")
    print(" " * 9, *(f"{head:>{width}}" for head, width in zip(heads, WIDTHS, strict=True)))
    least = 0.0
    for name in ("floor", "runtime", "rendered", "stored"):
        command = [sys.executable, __file__, "--row", name, "--episodes", str(given.episodes)]
        told = Measured(**json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
        least = least or told.cpu_ms
        values = (told.cpu_ms, told.cpu_ms / least, told.lag_p50, told.lag_p99, told.lag_max, told.kb_an_episode, told.wall)
        print(f"{name:9}", *(f"{value:{width}.{3 if value < 1 else 1}f}" for value, width in zip(values, WIDTHS, strict=True)))


if __name__ == "__main__":
    main()
