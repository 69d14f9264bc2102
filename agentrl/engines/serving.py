"""`ServerEngine`: what every client does alike whose server takes and gives token ids.

It holds the deadlines of requests (which stand still while the engine is paused), lets requests wait at the gate, sends an
abort until it is heeded, changes the server one thing at a time and to the end, and refuses before it is sent what the
server could not bear. A client fills in how its server is greeted, paused, resumed, aborted and given weights.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from agentrl.engines.contract import (
    EngineInfo,
    GenerateRequest,
    Media,
    PauseMode,
    ScoreRequest,
    Scores,
    Weights,
    check_ids,
)
from agentrl.engines.gate import Gate
from agentrl.engines.http import Body, Refused, Transport
from agentrl.episode import EMPTY_LOGPROBS, IntArray, Version
from agentrl.errors import ContextOverflow, EngineAborted, EngineError, UserError, capture

log = logging.getLogger(__name__)

ABORT_TRIES = 8
ABORT_AGAIN_S = 0.25
SCORE_TRIES = 4

SelfT = TypeVar("SelfT", bound="ServerEngine")


@dataclass(frozen=True, slots=True)
class Seconds:
    """How long the server may take: `request` for a generation (time spent paused not counted), `publish` for each step of
    a weight update, `control` for every other call, `connect` for a connection."""

    request: float = 600.0
    control: float = 30.0
    publish: float = 600.0
    connect: float = 5.0


@dataclass(slots=True)
class Running:
    """A request that the server has: its name there, its deadline, and its end."""

    rid: str
    deadline: asyncio.Timeout
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    left: float = 0.0


class ServerEngine:
    """See the module."""

    def __init__(self, http: Transport, policies: Sequence[str], seconds: Seconds) -> None:
        self._http = http
        self._name = http.name
        self._policies = tuple(policies)
        self._seconds = seconds
        self._gate = Gate()
        self._control = asyncio.Lock()
        self._tasks = asyncio.TaskGroup()
        self._running: dict[str, Running] = {}
        self._mode: PauseMode = "in_place"
        self._unsound = ""
        """Why the server's weights may be a mixture; empty = they are whole."""
        self._closed = True
        self._nonce, self._sent = secrets.token_hex(4), 0
        self._info: EngineInfo | None = None
        self._versions: dict[str, Version] = {}

    # --- what a client fills in --------------------------------------------------------------------------------------------
    async def _greet(self) -> tuple[EngineInfo, dict[str, Version]]:
        """What the server is, and the version that serves each policy. `UserError` for a server that is not known."""
        raise NotImplementedError

    async def _score_there(self, request: ScoreRequest) -> Scores | None:
        """None when new weights came meanwhile."""
        raise NotImplementedError

    async def _abort_there(self, rid: str, seconds: float) -> None:
        """Asks the server to abort the request that it knows by this name."""
        raise NotImplementedError

    async def _pause_there(self, mode: PauseMode) -> None:
        """Returns when the server samples nothing any more."""
        raise NotImplementedError

    async def _resume_there(self) -> None:
        raise NotImplementedError

    async def _load(self, policy: str, weights: Weights, version: Version) -> None:
        """Gives the paused server new weights. Sets `_unsound` while they may be a mixture."""
        raise NotImplementedError

    # --- the engine --------------------------------------------------------------------------------------------------------
    async def __aenter__(self: SelfT) -> SelfT:
        await self._http.open()
        try:
            self._info, self._versions = await self._greet()
            await self._tasks.__aenter__()
            self._closed = False
        finally:
            if self._closed:
                await self._http.close()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._closed = True
        try:
            await self._tasks.__aexit__(None, None, None)
        finally:
            await self._http.close()

    @property
    def info(self) -> EngineInfo:
        """Known once entered."""
        if self._info is None:
            raise EngineError(f"{self._name}: not entered yet; use `async with engine:`")
        return self._info

    def version(self, policy: str) -> Version:
        """A policy that was not published to yet has the server's start-up name as the digest of `server/<policy>@0`."""
        self._serves(policy)
        if policy not in self._versions:
            why = (
                "not entered yet; use `async with engine:`"
                if self._closed
                else f"policy {policy!r} has no weights yet; publish"
            )
            raise UserError(f"{self._name}: {why}")
        return self._versions[policy]

    async def score(self, request: ScoreRequest) -> Scores:
        """See `Engine.score`. Scores that new weights overtook are asked for again, of the new ones."""
        if not self._scorable(request):
            return Scores(EMPTY_LOGPROBS, self.version(request.policy))
        for _ in range(SCORE_TRIES):
            if not await self._entered(request.id):
                raise EngineAborted(f"{self._name}: scoring {request.id!r} was aborted")
            scores = await self._score_there(request)
            if scores is not None:
                return scores
        raise EngineError(
            f"{self._name}: new weights came {SCORE_TRIES} times while {request.id!r} was being scored; publish less often",
            retryable=True,
        )

    async def abort(self, request_id: str) -> None:
        """Returns when the request has ended. Sent again while it runs: the server drops an abort that comes too early."""
        if self._gate.abort(request_id) or (running := self._running.get(request_id)) is None:
            return
        for _ in range(ABORT_TRIES):
            await self._abort_there(running.rid, self._seconds.control)
            try:
                async with asyncio.timeout(ABORT_AGAIN_S):
                    await running.ended.wait()
                return
            except TimeoutError:
                continue
        log.warning("%s: request %s still runs after %d aborts", self._name, request_id, ABORT_TRIES)

    async def pause(self, mode: PauseMode = "in_place") -> None:
        """See `Engine.pause`."""
        await self._to_the_end(self._locked(self._pause(mode)))

    async def resume(self) -> None:
        """See `Engine.resume`."""
        await self._to_the_end(self._locked(self._resume()))

    async def publish(self, policy: str, weights: Weights, version: Version) -> None:
        """See `Engine.publish`. Running requests keep their KV unless the engine was paused with `retract`.

        Goes on to its end when the caller is cancelled. If it fails after the server began to change its weights,
        requests are refused until a publish succeeds.
        """
        self._serves(policy)
        await self._to_the_end(self._locked(self._publish(policy, weights, version)))

    def _serves(self, policy: str) -> None:
        if policy not in self._policies:
            raise UserError(f"{self._name} serves {', '.join(map(repr, self._policies))}, not policy {policy!r}")

    # --- for clients -------------------------------------------------------------------------------------------------------
    def _admissible(self, request: GenerateRequest) -> tuple[IntArray, int]:
        """The prompt, and how many tokens may be drawn; refuses what the server could not bear."""
        self.version(request.policy)
        what = f"request {request.id!r}"
        if any(isinstance(part, Media) for part in request.parts):
            raise UserError(f"{what} has media, which this engine does not take; its info.offers.media is False")
        if unknown := set(request.columns) - self.info.offers.columns:
            offered = ", ".join(sorted(self.info.offers.columns)) or "none"
            raise UserError(f"{what} asks for columns {', '.join(sorted(unknown))}; this engine gives {offered}")
        prompt, forced, max_tokens = request.prompt, len(request.forced), request.sampling.max_tokens
        if not len(prompt):
            raise UserError(f"{what} has an empty prompt; begin with at least one token")
        check_ids(prompt, self.info.vocab_size, what)
        check_ids(request.forced, self.info.vocab_size, f"{what}, forced")
        check_ids(request.sampling.stop_ids, self.info.vocab_size, f"{what}, stop_ids")
        if forced > max_tokens:
            raise UserError(f"{what}: {forced} forced tokens, but max_tokens is {max_tokens}; it counts them")
        room = self.info.max_context - len(prompt)
        if room < max(1, forced + (forced < max_tokens)):
            raise ContextOverflow(
                f"{self._name}: {what}: a prompt of {len(prompt)} tokens, {forced} forced ones and one more do not fit "
                f"into a context of {self.info.max_context}"
            )
        return prompt, min(max_tokens, room) - forced

    def _scorable(self, request: ScoreRequest) -> bool:
        """Whether there is anything to score; refuses what cannot be."""
        self.version(request.policy)
        length, what = len(request.ids), f"score request {request.id!r}"
        check_ids(request.ids, self.info.vocab_size, what)
        if not 1 <= request.start <= length:
            raise UserError(f"{what}: start is {request.start}; give 1 <= start <= {length}, its length")
        if length >= self.info.max_context:
            raise ContextOverflow(f"{self._name}: {length} ids to score; it takes at most {self.info.max_context - 1}")
        return request.start < length

    async def _entered(self, request_id: str) -> bool:
        """Waits while paused; False = aborted while it waited."""
        if request_id in self._running:
            raise UserError(f"request id {request_id!r} is already running; give every request an id of its own")
        return await self._gate.enter(request_id)

    async def _request(self, request_id: str, send: Callable[[Running], Awaitable[Any]], too_long: Sequence[str]) -> Any:
        """Sends one request under its own deadline; its end, however it comes, frees its place on the server.

        `too_long`: parts of the messages by which the server says that a request does not fit its context.
        """
        if request_id in self._running:
            raise UserError(f"request id {request_id!r} is already running; give every request an id of its own")
        if self._unsound:
            raise EngineError(f"{self._name}: {self._unsound}; publish again, or restart it", retryable=True)
        # Its own name on the server: a request that was just cancelled may still hold the one it had.
        self._sent += 1
        running = Running(f"{request_id}~{self._nonce}.{self._sent}", asyncio.timeout(self._seconds.request))
        self._running[request_id] = running
        ended = False
        try:
            reply = await send(running)
            ended = True
            return reply
        except Refused as error:
            ended = True
            if any(part in error.reason for part in too_long):
                raise ContextOverflow(str(error)) from error
            raise
        finally:
            del self._running[request_id]
            running.ended.set()
            if not ended and not self._closed:
                await self._to_the_end(self._drop(running.rid))

    async def _call(self, method: str, path: str, body: Body | None = None, *, seconds: float | None = None) -> Any:
        limit = self._seconds.control if seconds is None else seconds
        return await self._http.call(method, path, body, deadline=asyncio.timeout(limit), seconds=limit)

    # --- inside ------------------------------------------------------------------------------------------------------------
    async def _drop(self, rid: str) -> None:
        """Aborts a request that nobody waits for any more; a server that does not answer has none to free."""
        try:
            await self._abort_there(rid, min(2.0, self._seconds.control))
        except EngineError as error:
            log.warning("could not abort request %s: %s", rid, error)

    async def _pause(self, mode: PauseMode) -> None:
        open_again = not self._gate.closed
        self._gate.close()
        try:
            await self._pause_there(mode)
            open_again = False
        finally:
            if open_again:
                self._gate.open()
        self._mode = mode
        now = asyncio.get_running_loop().time()
        for running in self._running.values():
            when = running.deadline.when()
            if when is not None and not running.deadline.expired():
                running.left = max(0.0, when - now)
                running.deadline.reschedule(None)

    async def _resume(self) -> None:
        if not self._gate.closed:
            return
        try:
            await self._resume_there()
        finally:  # also after a failure: whoever waits must learn of it from the server, not wait for ever
            now = asyncio.get_running_loop().time()
            for running in self._running.values():
                if running.deadline.when() is None:
                    running.deadline.reschedule(now + running.left)
            self._gate.open()

    async def _publish(self, policy: str, weights: Weights, version: Version) -> None:
        paused_here = not self._gate.closed
        if paused_here:
            await self._pause("in_place")
        try:
            with capture() as loading:
                await self._load(policy, weights, version)
                self._versions[policy] = version
        finally:
            with capture() as resuming:
                if paused_here:
                    await self._resume()
        if loading.error is not None and resuming.error is not None:
            again = isinstance(loading.error, EngineError) and loading.error.retryable
            message = f"{loading.error}; and then it did not resume: {resuming.error}"
            raise EngineError(message, retryable=again) from loading.error
        if (error := loading.error or resuming.error) is not None:
            raise error

    async def _locked(self, work: Coroutine[Any, Any, None]) -> None:
        """One change of the server at a time."""
        async with self._control:
            await work

    async def _to_the_end(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs in the engine's task group, so that a cancelled caller leaves the server in no state half way."""

        async def outcome() -> BaseException | None:
            try:
                with capture() as caught:
                    await work
            except asyncio.CancelledError as error:
                return error
            return caught.error

        error = await asyncio.shield(self._tasks.create_task(outcome()))
        if error is not None:
            raise error
