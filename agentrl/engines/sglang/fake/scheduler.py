"""The fake's scheduler: which requests run, when they wait, and what an abort, a pause and new weights do to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from agentrl.engines.sglang.fake.served import Draw, Served, Step


@dataclass(slots=True)
class Run:
    """One prompt being continued. Everything that the reply tells of it is gathered here."""

    rid: str
    prompt: list[int]
    how: Draw
    max_new: int
    stop_ids: frozenset[int]
    stops: tuple[str, ...]
    cache_key: str
    score_from: int
    adapter: str | None = None
    """The folder of the adapter that it began with."""
    output: list[int] = field(default_factory=list[int])
    steps: list[Step] = field(default_factory=list[Step])
    versions: list[str] = field(default_factory=list[str])
    scores: list[float] = field(default_factory=list[float])
    cached: int = 0
    retractions: int = 0
    finish: dict[str, Any] | None = None
    aborted: asyncio.Event = field(default_factory=asyncio.Event)
    sampling: bool = False
    times: dict[str, float] = field(default_factory=dict[str, float])

    def spans(self, version: str) -> list[dict[str, Any]]:
        """Runs of equal versions over the output; one empty span when nothing was sampled."""
        spans: list[dict[str, Any]] = []
        for at, name in enumerate(self.versions):
            if spans and spans[-1]["version"] == name:
                spans[-1]["end"] = at + 1
            else:
                spans.append({"version": name, "start": at, "end": at + 1})
        return spans or [{"version": version, "start": 0, "end": 0}]


class PrefixCache:
    """Which prefixes have KV, by cache key."""

    def __init__(self) -> None:
        self._roots: dict[str, dict[int, Any]] = {}

    def match(self, key: str, ids: Sequence[int]) -> int:
        """Length of the longest stored prefix."""
        node, length = self._roots.get(key, {}), 0
        for token in ids:
            if token not in node:
                break
            node, length = node[token], length + 1
        return length

    def insert(self, key: str, ids: Sequence[int]) -> None:
        """Stores a sequence."""
        node = self._roots.setdefault(key, {})
        for token in ids:
            node = node.setdefault(token, {})

    def clear(self) -> None:
        """Forgets everything."""
        self._roots.clear()


class Scheduler:
    """Requests enter by `run`; while paused they wait before their first token and between two."""

    def __init__(self, served: Served, version: str, decode: Callable[[Sequence[int]], str], token_s: float) -> None:
        self.served = served
        self.version = version
        self.paused = False
        self.cache = PrefixCache()
        self.runs: dict[str, Run] = {}
        self._decode = decode
        self._token_s = token_s
        self._changed = asyncio.Condition()
        self._stepping = 0
        self._writing = False
        self._holding = False

    @property
    def sampling(self) -> list[Run]:
        """The requests that are past admission."""
        return [run for run in self.runs.values() if run.sampling]

    async def run(self, run: Run, emit: Callable[[Run], Any] | None = None) -> None:
        """Samples until the request finishes; `emit` is awaited after every token."""
        now = asyncio.get_running_loop().time
        run.times["received"] = now()
        try:
            await self._until(lambda: run.aborted.is_set() or not (self.paused or self._writing))
            run.sampling = True
            run.times["forward"] = now()
            if not run.aborted.is_set():
                await self._prefill(run)
                run.times["prefilled"] = now()
                while run.finish is None:
                    await self._token(run)
                    if emit is not None:
                        await emit(run)
            if run.finish is None:
                run.finish = {"type": "abort", "message": "Aborted", "status_code": None, "err_type": None}
        finally:
            run.times["finished"] = now()
            self.cache.insert(run.cache_key, [*run.prompt, *run.output[:-1]])
            del self.runs[run.rid]
            await self._notify()

    async def _prefill(self, run: Run) -> None:
        run.cached = min(self.cache.match(run.cache_key, run.prompt), len(run.prompt) - 1)
        if run.score_from >= 0:
            run.cached = min(run.cached, run.score_from)
            async with self._step():
                run.scores = await self.served.score(run.prompt, run.score_from + 1, run.adapter)
        if run.max_new == 0:
            run.finish = {"type": "length", "length": 0}

    async def _token(self, run: Run) -> None:
        await asyncio.sleep(self._token_s)
        await self._until(lambda: run.aborted.is_set() or not self.paused)
        if run.aborted.is_set():
            run.finish = {"type": "abort", "message": "Aborted", "status_code": None, "err_type": None}
            return
        async with self._step():
            step = await self.served.step([*run.prompt, *run.output], run.how, run.adapter)
            run.versions.append(self.version)
        run.output.append(step.token)
        run.steps.append(step)
        run.finish = self._finished(run, step.token)

    def _finished(self, run: Run, token: int) -> dict[str, Any] | None:
        if token in run.stop_ids:
            return {"type": "stop", "matched": token}
        if run.stops:
            text = self._decode(run.output)
            for stop in run.stops:
                if stop in text:
                    return {"type": "stop", "matched": stop}
        if len(run.output) >= run.max_new:
            return {"type": "length", "length": run.max_new}
        return None

    async def abort(self, rids: Sequence[str], *, waiting: bool = False) -> None:
        """Ends these requests with what they have; unknown ones are no error. One that waits for a resume is not known yet."""
        for rid in rids:
            if rid in self.runs and (waiting or self.runs[rid].sampling or not self.paused):
                self.runs[rid].aborted.set()
        await self._notify()

    async def pause(self, mode: str) -> None:
        """Returns when no step is under way."""
        self.paused = True
        if mode == "abort":
            await self.abort([run.rid for run in self.sampling])
            await self._until(lambda: not self.sampling)
        if mode == "retract":
            for run in self.sampling:
                run.retractions += 1
                run.cached = 0
        self._holding = mode == "in_place"
        await self._until(lambda: self._stepping == 0)

    async def resume(self) -> None:
        """Goes on."""
        self.paused = False
        await self._notify()

    def flush(self) -> bool:
        """False while requests hold KV; a retract takes it from them."""
        if not self._free():
            return False
        self.cache.clear()
        return True

    async def flush_within(self, seconds: float) -> bool:
        """Waits for the running requests, so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._until(self._free)
        except TimeoutError:
            return False
        return self.flush()

    def _free(self) -> bool:
        return not self.sampling or (self.paused and not self._holding)

    @property
    def idle(self) -> bool:
        """Whether its memory may be released; the real server exits when it is not."""
        return self._free()

    async def write(self, weights: Mapping[str, Any], version: str | None) -> None:
        """New weights: at once when paused; otherwise it waits for the running requests, and new ones wait for it."""
        self._writing = True
        try:
            await self._until(lambda: self.paused or not self.sampling)
            await self.served.load(weights, version or self.version)
            self.version = version or self.version
        finally:
            self._writing = False
            await self._notify()

    @asynccontextmanager
    async def _step(self) -> AsyncGenerator[None, None]:
        self._stepping += 1
        try:
            yield
        finally:
            self._stepping -= 1
            if self.paused:
                await self._notify()

    async def _until(self, condition: Callable[[], bool]) -> None:
        if condition():
            return
        async with self._changed:
            await self._changed.wait_for(condition)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
