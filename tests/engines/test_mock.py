"""The mock takes time and nothing else: thousands at once, one timer each."""

from __future__ import annotations

import asyncio
import time
import zlib

import numpy as np
import pytest

from agentrl.engines.contract import GenerateRequest
from agentrl.engines.mock import Mock
from agentrl.episode import Sampling, Version, digest_ids, token_ids

PROMPT = token_ids(range(200))


def ask(name: str, **sampling: int | tuple[int, ...]) -> GenerateRequest:
    return GenerateRequest(name, "policy", (PROMPT,), Sampling(**sampling), seed=zlib.crc32(name.encode()))  # type: ignore[arg-type]


async def test_four_thousand_at_once_take_as_long_as_one() -> None:
    async with Mock(lambda rng: 0.3) as engine, asyncio.TaskGroup() as group:
        started, cpu = time.monotonic(), time.process_time()
        tasks = [group.create_task(engine.generate(ask(str(n), max_tokens=32))) for n in range(4000)]
        await asyncio.wait(tasks)
        wall, cpu = time.monotonic() - started, time.process_time() - cpu
    assert all(len(task.result().ids) == 32 for task in tasks)
    assert wall < 60, f"{wall:.2f} s; one after the other they take 1200"
    assert cpu / 4000 < 0.5e-3, f"{cpu / 4000 * 1e6:.0f} µs of CPU a request"


async def test_replies_share_read_only_memory() -> None:
    async with Mock(lambda rng: 0.0) as engine:
        replies = [await engine.generate(ask(str(n), max_tokens=8)) for n in range(3)]
    for reply in replies:
        assert reply.ids.base is not None and not reply.ids.flags.writeable and not reply.logprobs.flags.writeable
        assert (reply.logprobs <= 0).all() and reply.digest == digest_ids(PROMPT, reply.ids)


async def test_reply_with_stop_ids_has_the_drawn_length_and_ends_with_one() -> None:
    async with Mock(lambda rng: 0.0, lambda rng: 10, vocab_size=32_000) as engine:
        reply = await engine.generate(ask("a", max_tokens=50, stop_ids=(31_999,)))
    assert len(reply.ids) <= 10 and reply.ids[-1] == 31_999 and reply.finish == "stop" and reply.matched == 31_999


async def test_abort_gives_the_share_of_tokens_that_its_time_allows() -> None:
    async with Mock(lambda rng: 30.0) as engine, asyncio.TaskGroup() as group:
        task = group.create_task(engine.generate(ask("a", max_tokens=3000)))
        await asyncio.sleep(0.1)
        await engine.abort("a")
    reply = task.result()
    assert reply.finish == "abort" and 0 < len(reply.ids) < 1500
    assert engine.running == 0


async def test_publish_in_flight_gives_spans_from_where_the_reply_had_come_to() -> None:
    version = Version("run", "policy", 1)
    async with Mock(lambda rng: 10.0) as engine, asyncio.TaskGroup() as group:
        first = engine.version("policy")
        task = group.create_task(engine.generate(ask("a", max_tokens=10_000)))
        for act in (engine.publish("policy", {}, version), engine.abort("a")):
            await asyncio.sleep(0.05)
            await act
    reply = task.result()
    assert [span.version for span in reply.spans] == [first, version]
    assert 0 == reply.spans[0].start < reply.spans[0].end == reply.spans[1].start < reply.spans[1].end == len(reply.ids)


@pytest.mark.parametrize("seconds", [0.0, 0.01])
async def test_same_seed_gives_the_same_reply(seconds: float) -> None:
    async with Mock(lambda rng: seconds) as engine:
        first, second = [await engine.generate(ask("a", max_tokens=20)) for _ in range(2)]
    assert np.array_equal(first.ids, second.ids) and np.array_equal(first.logprobs, second.logprobs)
