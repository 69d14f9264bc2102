"""Random workflows, killed, resumed, replayed and forked everywhere.

AGENTRL_TORTURE=20 runs twenty times as many.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentrl.effect import Effect
from agentrl.limits import Limits
from agentrl.store.contract import EpisodeTail
from tests.runtime.harness import HEAD, Log, play
from tests.runtime.programs import PROGRAMS, Bench, Node, workflow

# a thread that hands a coroutine to an episode which was just put aside: nobody will ever await it
pytestmark = pytest.mark.filterwarnings("ignore:coroutine 'Interpreter.effect' was never awaited:RuntimeWarning")

TIMES = int(os.environ.get("AGENTRL_TORTURE", "1"))
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
LIMITS = Limits(grace=0.5, deadline=20.0, retry_wait=0.001)


def torture(examples: int) -> Any:
    return settings(
        max_examples=examples * TIMES, deadline=None, suppress_health_check=SLOW, database=None, derandomize=TIMES == 1
    )


async def replays(program: Node, record: Sequence[Effect], tail: EpisodeTail, **options: Any) -> None:
    """From its record alone the program comes to the same end, and asks nothing of the world."""
    bench = Bench(0)
    effects, again = await play(workflow(program, bench), record, mode="replay", limits=LIMITS, **options)
    assert (again.status, again.output, again.failure) == (tail.status, tail.output, tail.failure), program
    assert bench.calls == 0
    assert len(effects) == len(record)


async def lives(
    program: Node, seed: int, record: Sequence[Effect] = (), **options: Any
) -> tuple[Sequence[Effect], EpisodeTail]:
    """A run, live after its record; it ends by itself."""
    effects, tail = await play(workflow(program, Bench(seed)), record, limits=LIMITS, **options)
    assert tail.status in ("done", "failed"), (tail, program)
    assert tail.failure is None or tail.failure.fault in ("workflow",), tail
    assert list(effects[: len(record)]) == list(record)
    places = [effect.key for effect in effects if effect.status in ("ok", "error")]
    assert len(places) == len(set(places)), "two effects have one key"
    return effects, tail


@torture(600)
@given(PROGRAMS, st.integers(0, 2**32))
def test_a_program_replays_to_the_same_end(program: Node, seed: int) -> None:
    async def check() -> None:
        effects, tail = await lives(program, seed)
        await replays(program, effects, tail)

    asyncio.run(check())


@torture(200)
@given(PROGRAMS, st.integers(0, 2**32))
def test_a_program_cut_off_anywhere_goes_on_and_then_replays(program: Node, seed: int) -> None:
    async def check() -> None:
        effects, _ = await lives(program, seed)
        for n in range(len(effects)):
            resumed, tail = await lives(program, seed + n + 1, effects[:n])
            await replays(program, resumed, tail)

    asyncio.run(check())


@torture(200)
@given(PROGRAMS, st.integers(0, 2**32))
def test_a_program_killed_again_and_again_ends_and_replays(program: Node, seed: int) -> None:
    async def check() -> None:
        record: list[Effect] = []
        for n in range(60):
            log = Log()
            _, tail = await play(workflow(program, Bench(seed + n)), record, log=log, kill_at=1 + n % 3, limits=LIMITS)
            record += log.effects
            if tail.status in ("done", "failed") and len(log.effects) < 1 + n % 3:
                await replays(program, record, tail)
                return
        resumed, tail = await lives(program, seed, record)
        await replays(program, resumed, tail)

    asyncio.run(check())


@torture(200)
@given(PROGRAMS, st.integers(0, 2**32))
def test_a_program_forked_at_every_cut_goes_on_and_then_replays(program: Node, seed: int) -> None:
    async def check() -> None:
        effects, _ = await lives(program, seed)
        for cut in sorted({effect.completed for effect in effects if effect.completed >= 0}):
            record = [effect for effect in effects if 0 <= effect.completed < cut]
            head = replace(HEAD, id=f"fork {cut}", seed=seed ^ cut, fork_of="e", fork_cut=cut)
            forked, tail = await lives(program, seed + cut + 1, record, head=head)
            await replays(program, forked, tail, head=head)

    asyncio.run(check())


@torture(250)
@given(PROGRAMS, st.integers(0, 2**32), st.booleans())
def test_a_program_interrupted_anywhere_replays_to_the_same_end(program: Node, seed: int, deadline: bool) -> None:
    async def check() -> None:
        rng = random.Random(seed)
        interrupt_at = rng.randrange(1, 8)
        effects, tail = await play(
            workflow(program, Bench(seed)), limits=LIMITS, interrupt=("deadline" if deadline else "cancel", interrupt_at)
        )
        interrupted = [effect for effect in effects if effect.kind in ("cancel", "deadline")]
        assert tail.status in (("over_budget" if deadline else "cancelled",) if interrupted else ("done", "failed")), tail
        await replays(program, effects, tail, strict=not interrupted)
        for n in range(len(effects)):
            resumed, after = await play(workflow(program, Bench(seed + n)), effects[:n], limits=LIMITS)
            await replays(program, resumed, after, strict=after.status in ("done", "failed"))

    asyncio.run(check())
