"""`SGLangEngine`: the engine contract over SGLang's native HTTP API."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from agentrl.engines.http import Body, Refused, Transport
from agentrl.engines.sglang import wire
from agentrl.episode import EMPTY_LOGPROBS, IntArray, Version
from agentrl.errors import AgentRLError, ContextOverflow, EngineAborted, EngineError, UserError

log = logging.getLogger(__name__)

KNOWN_VERSIONS = frozenset({"0.5.23"})
"""Versions of SGLang whose wire was recorded and is held by tests."""

DIES_OF = "it exits on a token id outside its vocabulary and on a payload that it blocks"

ABORT_TRIES = 8
ABORT_AGAIN_S = 0.25


@dataclass(slots=True)
class _Running:
    """A request that the server has: its deadline, which stands still while the engine is paused, and its end."""

    rid: str
    deadline: asyncio.Timeout
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    left: float = 0.0


class SGLangEngine:
    """One SGLang server, serving one policy.

    `vocab_size=None` reads it from the `config.json` of the server's model, if that folder is visible from here: SGLang
    does not tell it, and dies of an id outside it. `request_s` bounds a generation (time spent paused not counted),
    `control_s` every other call, `publish_s` each step of a weight update. Prefix caches are keyed by version. Seeds are
    heeded only by a server started with `--enable-deterministic-inference`; `info.offers.deterministic` tells. A request
    with stop ids may also end at the model's own end-of-text.

    A forced prefix is sent as input, so its log-probs come at temperature 1; at another temperature they are nan.
    """

    def __init__(
        self,
        url: str,
        *,
        policy: str = "policy",
        vocab_size: int | None = None,
        request_s: float = 600.0,
        control_s: float = 30.0,
        publish_s: float = 600.0,
        connect_s: float = 5.0,
        api_key: str = "",
        bucket_bytes: int = 1 << 29,
        known_versions: frozenset[str] = KNOWN_VERSIONS,
    ) -> None:
        self._policy = policy
        self._vocab_size = vocab_size
        self._request_s, self._control_s, self._publish_s = request_s, control_s, publish_s
        self._bucket_bytes = bucket_bytes
        self._known_versions = known_versions
        self._http = Transport("SGLang", url, connect_s=connect_s, api_key=api_key, dies_of=DIES_OF)
        self._name = self._http.name
        self._gate = Gate()
        self._control = asyncio.Lock()
        self._tasks = asyncio.TaskGroup()
        self._running: dict[str, _Running] = {}
        self._mode: PauseMode = "in_place"
        self._recomputed: dict[str, bool] = {}
        self._versions = wire.Versions(policy, self._recomputed)
        self._unsound = ""
        self._ranks = 1
        self._closed = True
        self._nonce, self._sent = f"{secrets.token_hex(4)}.", 0
        self._info: EngineInfo | None = None
        self._version: Version | None = None

    async def __aenter__(self) -> SGLangEngine:
        await self._http.open()
        try:
            await self._greet()
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
        """A server that was not published to yet tells its start-up name as the digest of `server/<policy>@0`."""
        self._serves(policy)
        if self._version is None:
            raise EngineError(f"{self._name}: not entered yet; use `async with engine:`")
        return self._version

    async def healthy(self) -> None:
        """Raises `EngineError` unless the server answers. Never asks /health, which blocks while generation is paused."""
        await self._call("GET", "/model_info")

    async def generate(self, request: GenerateRequest) -> Generation:
        """See `Engine.generate`."""
        prompt, new = self._admissible(request)
        if not await self._gate.enter(request.id):
            return wire.no_tokens(prompt)
        body = wire.generate_body(request, prompt, new, str(self.version(self._policy)))
        reply = await self._request(request.id, body)
        return wire.read_generation(request, len(prompt), reply, self._versions, self._name, self.info.vocab_size)

    async def score(self, request: ScoreRequest) -> Scores:
        """See `Engine.score`: no token is sampled."""
        self._serves(request.policy)
        length = len(request.ids)
        check_ids(request.ids, self.info.vocab_size, f"score request {request.id!r}")
        if not 1 <= request.start <= length:
            raise UserError(f"score request {request.id!r}: start is {request.start}; give 1 <= start <= {length}, its length")
        if request.start == length:
            return Scores(EMPTY_LOGPROBS, self.version(self._policy))
        if length >= self.info.max_context:
            raise ContextOverflow(f"{self._name}: {length} ids to score; it takes at most {self.info.max_context - 1}")
        if not await self._gate.enter(request.id):
            raise EngineAborted(f"{self._name}: scoring {request.id!r} was aborted")
        reply = await self._request(request.id, wire.score_body(request, str(self.version(self._policy))))
        logprobs, text = wire.read_scores(request, reply, self._name, self.info.vocab_size)
        return Scores(logprobs, self._versions.of(text))

    async def abort(self, request_id: str) -> None:
        """Returns when the request has ended. Sent again while it runs: the server drops an abort that comes too early."""
        if self._gate.abort(request_id):
            return
        running = self._running.get(request_id)
        if running is None:
            return
        for _ in range(ABORT_TRIES):
            await self._call("POST", "/abort_request", {"rid": running.rid})
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
        await self._to_the_end(self._locked(self._publish(weights, version)))

    async def _greet(self) -> None:
        """Reads what the server is, and refuses one that is not known."""
        server = await self._call("GET", "/server_info")
        model = await self._call("GET", "/model_info")
        models = await self._call("GET", "/v1/models")
        try:
            found = server["version"]
            if found not in self._known_versions:
                raise UserError(
                    f"{self._name} has version {found}; known are {', '.join(sorted(self._known_versions))}. Start one of "
                    "those, or hold this one with agentrl.testing.check_engine and pass known_versions"
                )
            # A prompt longer than max_req_input_len is refused, though it fits the model.
            max_context = min(int(models["data"][0]["max_model_len"]), int(server["max_req_input_len"]) + 1)
            self._ranks = int(server["tp_size"])
            offers = Offers(deterministic=bool(server["enable_deterministic_inference"]))
            vocab_size = self._vocab_size or self._read_vocab_size(model["model_path"])
            self._version = self._versions.of(model["weight_version"])
        except (KeyError, TypeError, IndexError) as error:
            raise EngineError(f"{self._name}: its info lacks {error}; is this an SGLang server?") from error
        self._info = EngineInfo(f"sglang {found}", vocab_size, max_context, offers)

    def _read_vocab_size(self, model_path: str) -> int:
        config = Path(model_path) / "config.json"
        if not config.is_file():
            raise UserError(f"{self._name}: its model folder {model_path!r} is not visible from here; pass vocab_size")
        values = json.loads(config.read_text())
        return int(values["vocab_size"] if "vocab_size" in values else values["text_config"]["vocab_size"])

    def _serves(self, policy: str) -> None:
        if policy != self._policy:
            raise UserError(f"{self._name} serves policy {self._policy!r}, not {policy!r}")

    def _admissible(self, request: GenerateRequest) -> tuple[IntArray, int]:
        """The prompt, and how many tokens may be drawn; refuses what the server could not bear."""
        self._serves(request.policy)
        what = f"request {request.id!r}"
        if any(isinstance(part, Media) for part in request.parts):
            raise UserError(f"{what} has media, which this engine does not take; its info.offers.media is False")
        if request.columns:
            raise UserError(f"{what} asks for columns {request.columns}; this engine gives none (info.offers.columns)")
        prompt, forced = request.prompt, len(request.forced)
        if not len(prompt):
            raise UserError(f"{what} has an empty prompt; begin with at least one token")
        check_ids(prompt, self.info.vocab_size, what)
        check_ids(request.forced, self.info.vocab_size, f"{what}, forced")
        check_ids(request.sampling.stop_ids, self.info.vocab_size, f"{what}, stop_ids")
        if forced > request.sampling.max_tokens:
            raise UserError(f"{what}: {forced} forced tokens, but max_tokens is {request.sampling.max_tokens}; it counts them")
        room = self.info.max_context - len(prompt)
        if room < max(1, forced + (forced < request.sampling.max_tokens)):
            raise ContextOverflow(
                f"{self._name}: {what}: a prompt of {len(prompt)} tokens, {forced} forced ones and one more do not fit "
                f"into a context of {self.info.max_context}"
            )
        return prompt, min(request.sampling.max_tokens, room) - forced

    async def _request(self, request_id: str, body: Body) -> Any:
        """POST /generate under the request's own deadline; its end, however it comes, frees its place on the server."""
        if request_id in self._running:
            raise UserError(f"request id {request_id!r} is already running; give every request an id of its own")
        if self._unsound:
            raise EngineError(f"{self._name}: {self._unsound}; publish again, or restart it", retryable=True)
        # Its own name on the server: a request that was just cancelled may still hold the one it had.
        self._sent += 1
        running = _Running(f"{request_id}~{self._nonce}{self._sent}", asyncio.timeout(self._request_s))
        body = {**body, "rid": running.rid}
        self._running[request_id] = running
        ended = False
        try:
            reply = await self._http.call("POST", "/generate", body, deadline=running.deadline, seconds=self._request_s)
            ended = True
            return reply
        except Refused as error:
            ended = True
            if "context length" in error.reason or "longer than" in error.reason or "maximum allowed length" in error.reason:
                raise ContextOverflow(str(error)) from error
            raise
        finally:
            del self._running[request_id]
            running.ended.set()
            if not ended and not self._closed:
                await self._to_the_end(self._drop(running.rid))

    async def _drop(self, rid: str) -> None:
        """Aborts a request that nobody waits for any more; a server that does not answer has none to free."""
        try:
            await self._call("POST", "/abort_request", {"rid": rid}, seconds=min(2.0, self._control_s))
        except EngineError as error:
            log.warning("could not abort request %s: %s", rid, error)

    async def _pause(self, mode: PauseMode) -> None:
        open_again = not self._gate.closed
        self._gate.close()
        try:
            await self._call("POST", "/pause_generation", {"mode": mode})
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
            await self._call("POST", "/continue_generation", {})
        finally:  # also after a failure: whoever waits must learn of it from the server, not wait for ever
            now = asyncio.get_running_loop().time()
            for running in self._running.values():
                if running.deadline.when() is None:
                    running.deadline.reschedule(now + running.left)
            self._gate.open()

    async def _publish(self, weights: Weights, version: Version) -> None:
        paused_here = not self._gate.closed
        if paused_here:
            await self._pause("in_place")
        try:
            await self._load(weights, str(version))
            self._recomputed[str(version)] = self._mode == "retract"
            self._version = version
        finally:
            if paused_here:
                await self._resume()

    async def _load(self, weights: Weights, text: str) -> None:
        # Under in_place the running requests hold the cache: a flush would fail, and the server exits of that.
        common = {"flush_cache": self._mode != "in_place", "abort_all_requests": False}
        if set(weights) == {"path"} and isinstance(weights["path"], str | Path):
            before = self._unsound
            try:
                body = {"model_path": str(weights["path"]), "weight_version": text, **common}
                await self._change("/update_weights_from_disk", body)
            except Refused as error:
                if error.status < 500:  # it refused the folder and kept its weights
                    self._unsound = before
                raise
        else:
            self._succeeded(await self._call("POST", "/begin_weight_update", {"selector": "all"}, seconds=self._publish_s))
            try:
                await self._load_tensors(weights, text, common)
            finally:
                self._succeeded(await self._call("POST", "/end_weight_update", {}, seconds=self._publish_s))
        told = (await self._call("GET", "/model_info"))["weight_version"]
        if told != text:
            raise EngineError(f"{self._name}: published {text}, but it serves {told}; does another run publish to it?")
        self._unsound = ""

    async def _load_tensors(self, weights: Weights, text: str, common: Body) -> None:
        if not weights:
            raise UserError('no weights to publish; pass tensors by name, or {"path": folder}')
        sent = 0
        buckets = wire.buckets(weights, self._bucket_bytes)
        while (bucket := await asyncio.to_thread(next, buckets, None)) is not None:
            payload = await asyncio.to_thread(wire.serialize, bucket)
            sent += len(bucket)
            body = {"serialized_named_tensors": [payload] * self._ranks, **common}
            if sent == len(weights):
                body["weight_version"] = text
            await self._change("/update_weights_from_tensor", body)

    async def _change(self, path: str, body: Body) -> None:
        """A call that changes weights. Until the publish is whole the server may serve a mixture."""
        self._unsound = f"{path} did not come to its end, so its weights may be a mixture"
        self._succeeded(await self._call("POST", path, body, seconds=self._publish_s))

    def _succeeded(self, reply: Any) -> None:
        if not (isinstance(reply, dict) and reply.get("success") is True):
            raise EngineError(f"{self._name}: the weight update did not succeed: {reply!r}")

    async def _call(self, method: str, path: str, body: Body | None = None, *, seconds: float | None = None) -> Any:
        limit = self._control_s if seconds is None else seconds
        return await self._http.call(method, path, body, deadline=asyncio.timeout(limit), seconds=limit)

    async def _locked(self, work: Coroutine[Any, Any, None]) -> None:
        """One change of the server at a time."""
        async with self._control:
            await work

    async def _to_the_end(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs in the engine's task group, so that a cancelled caller leaves the server in no state half way."""

        async def outcome() -> BaseException | None:
            try:
                await work
            except (AgentRLError, asyncio.CancelledError) as error:
                return error
            return None

        error = await asyncio.shield(self._tasks.create_task(outcome()))
        if error is not None:
            raise error
