"""`SGLangEngine`: the engine contract over SGLang's native HTTP API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from agentrl.engines.contract import (
    EngineInfo,
    GenerateRequest,
    Generation,
    Offers,
    PauseMode,
    ScoreRequest,
    Scores,
    Weights,
)
from agentrl.engines.folders import path_in, shapes_in, shapes_of, tensors_of
from agentrl.engines.http import Body, Transport
from agentrl.engines.replies import no_tokens
from agentrl.engines.serving import Running, Seconds, ServerEngine
from agentrl.engines.sglang import wire
from agentrl.engines.sglang.adapters import Adapters
from agentrl.engines.sglang.greeting import KNOWN_VERSIONS, Server, greet
from agentrl.engines.sglang.group import UpdateGroup
from agentrl.engines.sglang.weights import Update, Way, send_by_disk, send_by_group, send_folder, send_tensors
from agentrl.episode import Version
from agentrl.errors import EngineError, UserError

DIES_OF = "it exits on a token id outside its vocabulary, on weights of other shapes and on a payload that it blocks"
TOO_LONG = ("context length", "longer than", "maximum allowed length")


class SGLangEngine(ServerEngine):
    """One SGLang server, serving one policy; or, with `adapters`, a frozen base and the policies that are LoRA adapters of it.

    `model` is the folder that it should serve as seen from here: what the server says of model and tokenizer is compared with
    it, and weights are checked against it before they are sent, for the server exits of wrong ones. `vocab_size=None` reads it
    there, or in the server's own folder. Tensors go by the way `weights` (see `weights.Way`) in buckets of `bucket_bytes`;
    `exchange` is the folder for "disk" (a temporary one suits a server on this machine), `host` this machine's name as the
    server knows it, for "group". Adapters want a server with `--enable-lora`; a request keeps the adapter that it began with.

    Prefix caches are keyed by version. Seeds are heeded only by a server started with `--enable-deterministic-inference`;
    `info.offers.deterministic` tells. A request with stop ids may also end at the model's own end-of-text. A forced prefix is
    sent as input, so its log-probs come at temperature 1; at another temperature they are nan. Every piece of a stream comes
    with the whole reply before it: the bytes grow with the square of its length.

    `memory_saver=True` takes the server for one with `--enable-memory-saver`, whatever it says; one on a CPU, which cannot be,
    then releases nothing, in the same order of calls.
    """

    def __init__(
        self,
        url: str,
        *,
        policy: str = "policy",
        adapters: Sequence[str] = (),
        vocab_size: int | None = None,
        model: str | Path | None = None,
        weights: Way = "tensors",
        bucket_bytes: int = 1 << 29,
        exchange: str | Path | None = None,
        host: str = "127.0.0.1",
        seconds: Seconds | None = None,
        api_key: str = "",
        memory_saver: bool = False,
        known_versions: frozenset[str] = KNOWN_VERSIONS,
    ) -> None:
        seconds = seconds or Seconds()
        http = Transport("SGLang", url, connect_s=seconds.connect, api_key=api_key, dies_of=DIES_OF)
        super().__init__(http, (policy, *adapters), seconds)
        self._policy, self._model, self._vocab_size, self._known_versions = policy, model, vocab_size, known_versions
        self._way, self._bucket_bytes, self._exchange, self._host = weights, bucket_bytes, exchange, host
        self._memory_saver = memory_saver
        self._adapters = Adapters(adapters, self._name, self._call, seconds.publish, self._nonce)
        self._recomputed: dict[str, bool] = {}
        self._base_versions = wire.Versions(policy, self._recomputed)
        self._server: Server | None = None
        self._group: UpdateGroup | None = None
        self._updates = self._failures = 0
        self._released = False

    async def __aexit__(self, *exc: object) -> None:
        try:
            await self._adapters.unload_all()
            if self._group is not None:
                await self._group.leave()
        finally:
            await super().__aexit__(*exc)

    async def healthy(self) -> None:
        """Raises `EngineError` unless the server answers. Never asks /health, which blocks while generation is paused."""
        await self._call("GET", "/model_info")

    async def generate(self, request: GenerateRequest) -> Generation:
        """See `Engine.generate`."""
        prompt, new = self._admissible(request)
        wire.check_mask(request, self._greeted.widest_mask)
        if not await self._entered(request.id):
            return no_tokens(prompt)
        async with self._weights_of(request.policy) as (adapter, told):
            body = wire.generate_body(request, prompt, new, self._cache_key, adapter)
            reader = wire.Reader(request, len(prompt), told, self._name, self.info.vocab_size)
            if request.on_tokens is not None and self.info.offers.streaming:
                stream = wire.Stream(reader, request.on_tokens)
                await self._send(request.id, body, stream)
                return stream.generation()
            generation = reader.generation(await self._send(request.id, body))
        if request.on_tokens is not None:
            request.on_tokens(generation.ids, generation.logprobs)
        return generation

    async def _score_there(self, request: ScoreRequest) -> Scores | None:
        async with self._weights_of(request.policy) as (adapter, told):
            updates = self._updates
            reply = await self._send(request.id, wire.score_body(request, self._cache_key, adapter))
            if self._updates != updates:
                return None
            logprobs, text = wire.read_scores(request, reply, self._name, self.info.vocab_size)
            return Scores(logprobs, told.of(text))

    async def release_memory(self) -> None:
        """See `Colocated.release_memory`. The server would exit if requests held its cache: pause with "retract" before."""
        await self._to_the_end(self._locked(self._release()))

    async def resume_memory(self) -> None:
        """See `Colocated.resume_memory`."""
        await self._to_the_end(self._locked(self._take_back()))

    @property
    def _greeted(self) -> Server:
        if self._server is None:
            raise EngineError(f"{self._name}: not entered yet; use `async with engine:`")
        return self._server

    @property
    def _cache_key(self) -> str:
        """Another for every publish: requests that new weights overtook leave a mixture under the key of the old ones."""
        return f"{self._versions[self._policy]}~{self._nonce}.{self._updates}"

    @asynccontextmanager
    async def _weights_of(self, policy: str) -> AsyncGenerator[tuple[str | None, wire.Told]]:
        """The adapter to ask for, and how the server's versions are read."""
        if policy not in self._adapters:
            yield None, self._base_versions
            return

        async def leave(work: Awaitable[None]) -> None:
            async def wait() -> None:
                await work

            if not self._closed:
                await self._to_the_end(wait())

        async with self._adapters.use(policy, leave) as adapter:
            yield adapter.name, wire.AdapterVersion(adapter.version, self._greeted.weight_version, self._name)

    async def _send(self, request_id: str, body: Body, stream: wire.Stream | None = None) -> Any:
        """The whole reply, or the stream told of all its events."""

        async def send(running: Running) -> Any:
            named = {**body, "rid": running.rid}
            if stream is None:
                return await self._http.call(
                    "POST", "/generate", named, deadline=running.deadline, seconds=self._seconds.request
                )
            named["stream"] = True
            return await self._http.stream(
                "/generate", named, stream.event, deadline=running.deadline, seconds=self._seconds.request
            )

        return await self._request(request_id, send, TOO_LONG)

    async def _request(self, request_id: str, send: Callable[[Running], Awaitable[Any]], too_long: Sequence[str]) -> Any:
        if self._released:
            raise EngineError(f"{self._name}: its memory is released to the learner; call resume_memory(), then publish")
        failures = self._failures
        reply = await super()._request(request_id, send, too_long)
        if failures != self._failures:
            raise EngineError(
                f"{self._name}: a publish failed half way while {request_id!r} ran, so it may be of mixed weights; publish "
                "again and repeat the request",
                retryable=True,
            )
        return reply

    # --- what ServerEngine asks of a client ----------------------------------------------------------------------------------
    async def _greet(self) -> tuple[EngineInfo, dict[str, Version]]:
        server = await greet(
            self._call,
            self._name,
            self._known_versions,
            vocab_size=self._vocab_size,
            model=self._model,
            share_weights=self._way != "disk",
        )
        adapted = len(self._policies) > 1
        if adapted and not server.adapters:
            raise UserError(
                f"{self._name} takes no adapters; start it with --enable-lora --max-lora-rank RANK --lora-target-modules all"
            )
        self._server = server
        versions = {policy: Version("server", policy, 0, server.weight_version) for policy in self._policies}
        versions[self._policy] = self._base_versions.of(server.weight_version)
        self._adapters.begin(versions)
        offers = Offers(
            swap_in_flight=not adapted,
            deterministic=server.deterministic,
            columns=wire.COLUMNS,
            streaming=server.streams,
            adapters=adapted,
            memory=(self._memory_saver or server.memory) and (server.keeps_weights or not adapted),
        )
        return EngineInfo(f"sglang {server.version}", server.vocab_size, server.max_context, offers), versions

    async def _abort_there(self, rid: str, seconds: float) -> None:
        await self._call("POST", "/abort_request", {"rid": rid}, seconds=seconds)

    async def _pause_there(self, mode: PauseMode) -> None:
        try:
            await self._call("POST", "/pause_generation", {"mode": mode})
        except EngineError:
            with suppress(EngineError):  # it may stand still all the same, and nobody would ever resume it
                await self._call("POST", "/continue_generation", {}, seconds=min(2.0, self._seconds.control))
            raise

    async def _resume_there(self) -> None:
        try:
            await self._call("POST", "/continue_generation", {})
        except EngineError as error:
            if not error.retryable:
                raise
            await self._call("POST", "/continue_generation", {})

    async def _publish(self, policy: str, weights: Weights, version: Version) -> None:
        if self._released:
            raise UserError(f"{self._name}: its memory is released; call resume_memory() before publishing to it")
        await super()._publish(policy, weights, version)

    async def _load(self, policy: str, weights: Weights, version: Version) -> None:
        if policy in self._adapters:
            await self._adapters.publish(policy, weights, version)
            return
        if len(self._policies) > 1:
            adapters = ", ".join(name for name in self._policies if name in self._adapters)
            raise UserError(f"{policy!r} is the base of {adapters}; it is frozen: publish to those")
        self._updates += 1
        text = str(version)
        update = Update(self._name, self._call, self._seconds.publish, text, flush=self._mode != "in_place")
        try:
            await self._change(update, weights)
            told = (await self._call("GET", "/model_info"))["weight_version"]
            if told != text:
                raise EngineError(f"{self._name}: published {text}, but it serves {told}; does another run publish to it?")
        except EngineError:
            if update.begun:
                self._unsound = f"{update.begun} did not come to its end, so its weights may be a mixture"
                self._failures += 1
            raise
        self._recomputed[text] = self._mode == "retract"
        self._unsound = ""

    async def _change(self, update: Update, weights: Weights) -> None:
        server = self._greeted
        folder = path_in(weights)
        if folder is not None:
            await asyncio.to_thread(self._check_folder, folder)
            await send_folder(update, folder)
            return
        tensors = tensors_of(weights)
        if server.model is not None:
            server.model.check(shapes_of(tensors), "what was published")
        if self._way == "disk":
            await send_by_disk(update, tensors, self._exchange)
        elif self._way == "tensors":
            await send_tensors(update, tensors, self._bucket_bytes, server.ranks)
        else:
            self._group = self._group or UpdateGroup(
                self._name, self._call, host=self._host, device=server.device, ranks=server.ranks,
                join_s=self._seconds.control, seconds=self._seconds.publish,
            )  # fmt: skip
            await send_by_group(update, tensors, self._bucket_bytes, self._group)

    def _check_folder(self, folder: Path) -> None:
        """`UserError` for weights of another model, as far as this side can see them; the server would exit of them."""
        model = self._greeted.model
        if model is not None and model.shapes and folder.is_dir():
            model.check(shapes_in(folder), str(folder))

    async def _resume(self) -> None:
        if self._released:
            raise UserError(f"{self._name}: its memory is released; call resume_memory() and publish before resume()")
        await super()._resume()

    async def _release(self) -> None:
        if not self.info.offers.memory:
            more = (
                " --enable-weights-cpu-backup, for no publish brings back the base of adapters"
                if len(self._policies) > 1
                else ""
            )
            raise UserError(f"{self._name} cannot release its memory; start it with --enable-memory-saver{more}")
        if self._released:
            return
        if self._running and not (self._gate.closed and self._mode == "retract"):
            raise UserError(
                f'{self._name}: {len(self._running)} requests hold its cache; pause("retract") before release_memory'
            )
        self._released = True  # also when it fails: nobody knows then what the server still has
        await self._call("POST", "/release_memory_occupation", {}, seconds=self._seconds.publish)

    async def _take_back(self) -> None:
        if not self._released:  # the server would exit
            return
        await self._call("POST", "/resume_memory_occupation", {}, seconds=self._seconds.publish)
        self._released = False
        if not self._greeted.keeps_weights:
            self._unsound = "it released its memory, and its weights with it"
