"""`Mock`: an engine in this process that only takes time. For load tests: one timer of the loop for each request."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from agentrl.engines.contract import (
    EngineInfo,
    GenerateRequest,
    Generation,
    Media,
    Offers,
    PauseMode,
    ScoreRequest,
    Scores,
    Weights,
    check_ids,
)
from agentrl.engines.gate import Gate
from agentrl.episode import EMPTY_IDS, EMPTY_LOGPROBS, Finish, IntArray, Version, VersionSpan, digest_ids
from agentrl.errors import ContextOverflow, UserError

POOL = 1 << 14
"""Ids and log-probs that all replies are slices of."""


@dataclass(slots=True)
class _Running:
    """A reply that is under way: it ends when its timer does, `left` seconds after `since`."""

    ids: IntArray
    seconds: float
    left: float
    since: float
    done: asyncio.Future[bool]
    timer: asyncio.TimerHandle | None = None
    marks: list[tuple[int, Version]] = field(default_factory=list[tuple[int, Version]])

    def sampled(self, now: float) -> int:
        """How many tokens there would be by now."""
        left = self.left - (now - self.since if self.timer is not None else 0.0)
        return (
            len(self.ids) if self.seconds <= 0 else min(len(self.ids), int(len(self.ids) * (1 - max(0.0, left) / self.seconds)))
        )


class Mock:
    """Each reply takes `latency(rng)` seconds and has `tokens(rng)` tokens, where `rng` is of the request's seed alone.

    A request without stop ids fills max_tokens; one with them ends with the first of them after `tokens(rng)` tokens.
    Ids are uniform and log-probs plausible, but neither is of any model: nothing can be learnt or scored.
    """

    def __init__(
        self,
        latency: Callable[[random.Random], float],
        tokens: Callable[[random.Random], int] = lambda rng: 32,
        *,
        policy: str = "policy",
        vocab_size: int = 32_000,
        max_context: int = 1 << 20,
        seed: int = 0,
    ) -> None:
        self._latency, self._tokens = latency, tokens
        self._policy = policy
        self._version = Version("mock", policy, 0)
        self._gate = Gate()
        self._running: dict[str, _Running] = {}
        rng = np.random.default_rng(seed)
        self._ids = rng.integers(0, vocab_size, POOL).astype(np.int32)
        self._logprobs = (-rng.exponential(0.7, POOL)).astype(np.float32)
        self._ids.flags.writeable = self._logprobs.flags.writeable = False
        self._info = EngineInfo("mock", vocab_size, max_context, Offers(scoring=False, deterministic=True))

    async def __aenter__(self) -> Mock:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return

    @property
    def info(self) -> EngineInfo:
        """Offers everything but scoring."""
        return self._info

    @property
    def running(self) -> int:
        """Requests under way."""
        return len(self._running)

    def version(self, policy: str) -> Version:
        """The version published last."""
        if policy != self._policy:
            raise UserError(f"this mock is policy {self._policy!r}, not {policy!r}")
        return self._version

    async def generate(self, request: GenerateRequest) -> Generation:
        """See `Engine.generate`."""
        self.version(request.policy)
        if request.columns or any(isinstance(part, Media) for part in request.parts):
            raise UserError(f"request {request.id!r} asks for columns or has media; a mock has neither")
        prompt, forced = request.prompt, request.forced
        check_ids(prompt, self._info.vocab_size, f"request {request.id!r}")
        check_ids(forced, self._info.vocab_size, f"request {request.id!r}, forced")
        room = min(request.sampling.max_tokens, self._info.max_context - len(prompt))
        if room < max(1, len(forced)):
            raise ContextOverflow(
                f"request {request.id!r}: {len(prompt)} tokens of prompt and {len(forced)} forced ones do not fit into "
                f"max_tokens={request.sampling.max_tokens} and a context of {self._info.max_context}"
            )
        if not await self._gate.enter(request.id):
            return Generation(EMPTY_IDS, EMPTY_LOGPROBS, (), "abort", digest_ids(prompt))
        if request.id in self._running:
            raise UserError(f"request id {request.id!r} is already running; give every request an id of its own")
        greedy = request.sampling.temperature == 0 or request.sampling.top_k == 1
        rng = random.Random(0 if greedy else request.seed)
        ids, first, finish, matched = self._reply(request, room, rng)
        run, whole = await self._take_time(request.id, ids, self._latency(rng))
        if not whole:
            ids, finish, matched = ids[: run.sampled(asyncio.get_running_loop().time())], "abort", None
        logprobs = self._logprobs[first : first + len(ids)]
        if request.on_tokens is not None:
            request.on_tokens(ids, logprobs)
        return Generation(ids, logprobs, _spans(run, len(ids)), finish, digest_ids(prompt, ids), matched=matched)

    def _reply(self, request: GenerateRequest, room: int, rng: random.Random) -> tuple[IntArray, int, Finish, int | None]:
        """Ids, where in the pool they lie, and how they end."""
        stops = request.sampling.stop_ids
        natural = max(1, self._tokens(rng))
        length = min(room, natural) if stops else room
        if length > POOL:
            raise UserError(f"request {request.id!r}: a mock gives at most {POOL} tokens; ask for fewer than {length}")
        first = rng.randrange(POOL - length + 1) if length > POOL // 2 else rng.randrange(POOL // 2)
        ids = self._ids[first : first + length]
        if (stops and natural < room) or len(request.forced):
            ids = ids.copy()
            if stops and natural < room:
                ids[-1] = stops[0]
            ids[: len(request.forced)] = request.forced
        for stop in stops:
            at = np.flatnonzero(ids[len(request.forced) :] == stop)
            if len(at):
                ids = ids[: len(request.forced) + int(at[0]) + 1]
        if stops and len(ids) > len(request.forced) and int(ids[-1]) in stops:
            return ids, first, "stop", int(ids[-1])
        return ids, first, "length", None

    async def _take_time(self, request_id: str, ids: IntArray, seconds: float) -> tuple[_Running, bool]:
        """Waits for the timer; False when aborted before it rang."""
        loop = asyncio.get_running_loop()
        run = _Running(ids, seconds, seconds, loop.time(), loop.create_future())
        run.marks.append((0, self._version))
        self._running[request_id] = run
        self._start(run)
        try:
            return run, await run.done
        finally:
            if run.timer is not None:
                run.timer.cancel()
            del self._running[request_id]

    def _start(self, run: _Running) -> None:
        loop = asyncio.get_running_loop()
        run.since = loop.time()
        run.timer = loop.call_later(run.left, _end, run.done, True)

    async def score(self, request: ScoreRequest) -> Scores:
        """A mock has no model."""
        raise UserError(f"score request {request.id!r}: a mock engine cannot score (info.offers.scoring is False)")

    async def abort(self, request_id: str) -> None:
        """See `Engine.abort`."""
        if not self._gate.abort(request_id) and request_id in self._running:
            _end(self._running[request_id].done, False)

    async def pause(self, mode: PauseMode = "in_place") -> None:
        """Timers stand still; "abort" ends what runs."""
        self._gate.close()
        now = asyncio.get_running_loop().time()
        for run in self._running.values():
            if mode == "abort":
                _end(run.done, False)
            elif run.timer is not None:
                run.timer.cancel()
                run.timer, run.left = None, max(0.0, run.left - (now - run.since))

    async def resume(self) -> None:
        """Timers go on."""
        for run in self._running.values():
            if run.timer is None:
                self._start(run)
        self._gate.open()

    async def publish(self, policy: str, weights: Weights, version: Version) -> None:
        """A mock has no weights: the version moves on, and the spans of what runs say from where."""
        del weights
        self.version(policy)
        self._version = version
        now = asyncio.get_running_loop().time()
        for run in self._running.values():
            run.marks.append((run.sampled(now), version))


def _end(done: asyncio.Future[bool], whole: bool) -> None:
    if not done.done():
        done.set_result(whole)


def _spans(run: _Running, length: int) -> tuple[VersionSpan, ...]:
    """The marks as spans over `length` tokens, the empty ones left out."""
    ends = [start for start, _ in run.marks[1:]] + [length]
    spans = [VersionSpan(version, start, min(end, length)) for (start, version), end in zip(run.marks, ends, strict=True)]
    return tuple(span for span in spans if span.end > span.start)
