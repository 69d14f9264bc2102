"""What bounded staleness buys when tools have heavy tails: episodes trained a second, on a simulated clock.

The train loop is the real one: `Training`, `Admission`, runtime, journals, SQLite. Simulated is only what takes time: replies
(`Mock`: uniform in 1 to 3 s), tool calls (lognormal, median 1 s, sigma as given: at 1.5 the mean is 3.1 s and one of 100
takes 33 s) and the learner's step (10 s, in its thread). An episode has 4 turns with a tool call each; a batch has 16
tasks of 8 episodes, and as many episodes may live at once as a batch has: the workers are the same in every row. A
tool call takes the same time in every row, by the episode's name. The clock jumps to the next timer whenever nothing is ready.

    bound       all workers always busy, or the learner, whichever is less: what no staleness can exceed
    refused     groups that were too old when they ended, of all that ended. They are the slow ones, so what is trained is
                faster than what is sampled, and a row may come a little above the bound

Only episodes that were trained count. Rates are of the steady part: without the first 6 and the last 10 batches.

    python benchmarks/staleness.py [--sigma 1.5] [--steps 40] [--learner 10]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import selectors
import statistics
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agentrl.admission import Admission
from agentrl.agent import Agent
from agentrl.effect import derive_seed
from agentrl.engines.mock import Mock
from agentrl.episode import Episode, Version, token_ids
from agentrl.experiment import Experiment, Policy
from agentrl.learning.contract import Row, StepStats
from agentrl.limits import Limits
from agentrl.meter import Meter
from agentrl.rendering.contract import Rendered, ToolRequest
from agentrl.rollout import Independent
from agentrl.run import Run
from agentrl.runtime import Runtime
from agentrl.store.sqlite import SQLiteStore
from agentrl.tasks import Uniform
from agentrl.team import Team
from agentrl.tool import as_tools, tool
from agentrl.toolcall import call_tool
from agentrl.train import Training
from agentrl.workflow import workflow

TURNS, TASKS, SIZE = 4, 16, 8
WORKERS = TASKS * SIZE
FIRST, LAST = 6, 10
"""Batches at the beginning and at the end that are not measured."""
PROMPT = token_ids(np.arange(256))
SIGMA = [1.5]


class SimulatedLoop(asyncio.SelectorEventLoop):
    """Its clock stands still while anything is ready or real work holds it, and jumps to the next timer otherwise."""

    def __init__(self) -> None:
        self.now, self.held = 0.0, 0
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self.now

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        self.held += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._release)
        return future

    def _release(self, future: Any) -> None:
        self.held -= 1


class _Selector(selectors.DefaultSelector):
    def __init__(self, loop: SimulatedLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None or (timeout > 0 and self._loop.held):
            return super().select(None)
        events = super().select(0)
        if timeout > 0 and not events:
            self._loop.now += timeout
        return events


class Store(SQLiteStore):
    """The clock waits for the disk, which is real."""

    async def flush(self) -> None:
        loop: Any = asyncio.get_running_loop()
        loop.held += 1
        try:
            await super().flush()
        finally:
            loop.held -= 1


@dataclass
class Learner:
    """Learns nothing, and takes its time for it."""

    seconds: float
    loop: SimulatedLoop
    version: Version = field(default_factory=lambda: Version("bench", "policy", 0))
    ends: list[float] = field(default_factory=list[float])
    lags: list[Counter[int]] = field(default_factory=list[Counter[int]])
    """Of each step, trained tokens by learner steps since they were drawn."""

    def step(self, rows: Sequence[Row]) -> StepStats:
        lags: Counter[int] = Counter()
        for row in rows:
            for span in (span for trained in row.trained for span in trained.turn.versions):
                lags[self.version.step - span.version.step] += span.end - span.start
        self.lags.append(lags)
        asyncio.run_coroutine_threadsafe(self._pass(), self.loop).result()
        self.version = Version("bench", "policy", self.version.step + 1)
        return StepStats(0.0, lags.total(), lags.total(), len(rows), {})

    async def _pass(self) -> None:
        self.loop.held -= 1
        await asyncio.sleep(self.seconds)
        self.loop.held += 1
        self.ends.append(self.loop.time())

    def weights(self) -> dict[str, Any]:
        return {}

    def save(self, folder: Path) -> None: ...

    def restore(self, folder: Path) -> None: ...


class Ids:
    """What of a renderer a ready prompt needs."""

    tokenizer_id = template_id = "ready"
    stop_ids = (0,)

    def decode(self, ids: Any) -> str:
        return ""


def tool_seconds(key: str) -> float:
    return random.Random(derive_seed("tool", key)).lognormvariate(0.0, SIGMA[0])


@tool(timeout=1e9)
async def look_up(key: str) -> str:
    """Look `key` up."""
    await asyncio.sleep(tool_seconds(key))
    return "found"


TOOLS = as_tools([look_up])
AGENT = Agent("agent")


@workflow(AGENT)
async def asks(task: int, team: Team) -> int:
    after = None
    for n in range(TURNS):
        after = await team.sample(AGENT, Rendered(0, PROMPT, ()), PROMPT, after=after, max_tokens=64, state="")
        await call_tool(team, TOOLS, after.turn, ToolRequest("look_up", {"key": str(after.turn.seed)}, f"call_{n}"))
    return 0


async def reward(task: Any, output: Any, episode: Episode) -> float:
    return float(episode.seed % 2)


@dataclass(frozen=True)
class Measured:
    """One row of the table."""

    rate: float
    """Trained episodes a second."""
    refused: float
    """Of all groups that ended."""
    lags: Counter[int]
    mean_seconds: float
    """Of an episode that ended, trained or not, without waiting for a worker."""


async def trained(max_staleness: int, steps: int, learner_seconds: float, folder: Path) -> Measured:
    experiment = Experiment(
        asks, Policy("policy"), reward=reward, tasks=range(10_000), rollout=Independent(SIZE), steps=steps,
        tasks_per_step=TASKS, max_staleness=max_staleness, eval_every=0, checkpoint_every=0,
        limits=Limits(concurrency=WORKERS, deadline=None),
    )  # fmt: skip
    loop: Any = asyncio.get_running_loop()
    engine = Mock(lambda rng: rng.uniform(1.0, 3.0), lambda rng: 32)
    learner, renderer = Learner(learner_seconds, loop), Ids()
    admission: Admission[int] = Admission.of(experiment, Uniform(range(10_000)), 0)
    async with AsyncExitStack() as stack:
        store = stack.enter_context(Store(folder / "store.db"))
        runtime = await stack.enter_async_context(
            Runtime(experiment, store=store, engine=engine, renderers={"policy": renderer})  # type: ignore[dict-item]
        )
        run = Run(folder, "bench")
        await Training(run, runtime, {"policy": learner}, admission, Meter(experiment, (), 0), asyncio.Event()).run()
        seconds = [lived(episode) for episode in store.episodes() if episode.status == "done"]
    ends = learner.ends[FIRST - 1 : -LAST]
    lags = sum(learner.lags[FIRST:-LAST], Counter[int]())
    refused = admission.refused / (admission.refused + steps * TASKS)
    return Measured((len(ends) - 1) * WORKERS / (ends[-1] - ends[0]), refused, lags, statistics.mean(seconds))


def lived(episode: Episode) -> float:
    """Simulated seconds of an episode: its tool calls, and the mean of its replies."""
    return sum(2.0 + tool_seconds(str(turn.seed)) for turn in episode.turns)


def simulated(max_staleness: int, steps: int, learner_seconds: float) -> Measured:
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(trained(max_staleness, steps, learner_seconds, Path(folder)))


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    arguments.add_argument("--sigma", type=float, default=SIGMA[0])
    arguments.add_argument("--steps", type=int, default=40)
    arguments.add_argument("--learner", type=float, default=10.0)
    arguments.add_argument("--staleness", type=int, nargs="+", default=[0, 1, 2, 4, 8])
    given = arguments.parse_args()
    SIGMA[0] = given.sigma
    rows = {bound: simulated(bound, given.steps, given.learner) for bound in given.staleness}
    first = next(iter(rows.values()))
    best = min(WORKERS / first.mean_seconds, WORKERS / given.learner if given.learner else float("inf"))
    tail = f"tool calls lognormal, median 1 s, sigma {given.sigma:g}"
    print(f"{WORKERS} workers, batches of {WORKERS} episodes, {TURNS} turns; {tail}; learner {given.learner:g} s a step\n")
    print(f"{'max_staleness':>13} {'episodes/s':>11} {'x of 0':>7} {'of bound':>9} {'refused':>8}  trained tokens by lag")
    for bound, row in rows.items():
        shares = "  ".join(f"{lag}: {row.lags[lag] / row.lags.total():.0%}" for lag in sorted(row.lags))
        print(
            f"{bound:13} {row.rate:11.2f} {row.rate / first.rate:7.2f} {row.rate / best:9.0%} {row.refused:8.1%}  {shares}",
            flush=True,
        )
    print(f"{'bound':>13} {best:11.2f} {best / first.rate:7.2f} {1:9.0%}")


if __name__ == "__main__":
    main()
