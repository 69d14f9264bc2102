"""`VLLMEngine`: the engine contract over vLLM's token-in, token-out HTTP API."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agentrl.engines.contract import EngineInfo, GenerateRequest, Generation, Offers, PauseMode, ScoreRequest, Scores, Weights
from agentrl.engines.folders import (
    ModelFolder,
    adapter_config,
    adapter_in,
    path_in,
    read_tensors,
    shapes_in,
    shapes_of,
    tensors_of,
    written,
)
from agentrl.engines.http import Body, Refused, Reply, Transport
from agentrl.engines.replies import no_tokens
from agentrl.engines.serving import Running, Seconds, ServerEngine
from agentrl.engines.vllm import wire
from agentrl.episode import FloatArray, IntArray, Version
from agentrl.errors import EngineAborted, EngineError, UserError

KNOWN_VERSIONS = frozenset({"0.32.0"})
"""Versions of vLLM whose wire was recorded and is held by tests."""

DIES_OF = "a reload of weights that failed kills its engine at the next request"
LOAD_ADAPTER, UNLOAD_ADAPTER = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
LOGPROBS_MODE = "processed_logprobs"
TOO_LONG = ("maximum model length", "maximum context length")
START = (
    "VLLM_SERVER_DEV_MODE=1 python -m vllm.entrypoints.openai.api_server --model FOLDER --enable-scale-out "
    f"--logprobs-mode {LOGPROBS_MODE}"
)


class _Transport(Transport):
    def parsed(self, method: str, path: str, reply: Reply) -> Any:
        """The routes for adapters tell their success in words, not in JSON."""
        return None if reply.status == 200 and path in (LOAD_ADAPTER, UNLOAD_ADAPTER) else super().parsed(method, path, reply)


@dataclass(frozen=True, slots=True)
class _Name:
    """How the server is asked for a policy: the model's or an adapter's name, and the key of its prefix cache.

    Both are new with every publish, but for the base's name. So no cache is read that other weights have filled: a version
    published again may follow requests that mixed it with others.
    """

    model: str
    cache_key: str = field(default_factory=lambda: secrets.token_hex(16))


class VLLMEngine(ServerEngine):
    """One vLLM server, serving one policy; or, with `adapters`, one frozen base and the policies that are LoRA adapters of it.

    Start it with `VLLM_SERVER_DEV_MODE=1 ... --enable-scale-out --logprobs-mode processed_logprobs`, and for adapters with
    `VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 ... --enable-lora`. `model` is the folder that it serves as seen from here, for the
    shapes of its tensors and its vocabulary; None = by the server's own path. Weights reach it through a folder below
    `exchange` that it must see too; None = a temporary one, for a server on this machine.

    Log-probs are of what was drawn from, so those of a request with top-k or top-p are `after_mask`. A forced prefix is sent
    as input, so its log-probs come at temperature 1 (at another they are nan), and the random numbers begin anew behind it:
    `info.offers.deterministic` is False. A policy of which no adapter was published yet is the base. A request goes on with the
    adapter that it began with, whose folder must stay until it ends: with adapters `info.offers.swap_in_flight` is False. And a
    server with `--enable-lora` cannot score: prompt log-probs of several requests at once kill it.
    """

    def __init__(
        self,
        url: str,
        *,
        policy: str = "policy",
        adapters: Sequence[str] = (),
        vocab_size: int | None = None,
        model: str | Path | None = None,
        exchange: str | Path | None = None,
        seconds: Seconds | None = None,
        api_key: str = "",
        known_versions: frozenset[str] = KNOWN_VERSIONS,
    ) -> None:
        seconds = seconds or Seconds()
        http = _Transport("vLLM", url, connect_s=seconds.connect, api_key=api_key, dies_of=DIES_OF)
        super().__init__(http, (policy, *adapters), seconds)
        self._base, self._adapters = policy, frozenset(adapters)
        self._vocab_size, self._exchange = vocab_size, exchange
        self._folder, self._seeds = Path(model or ""), True
        self._known_versions = known_versions
        self._told = wire.Versions(policy)
        self._names: dict[str, _Name] = {}
        self._max_rank = 0

    async def healthy(self) -> None:
        """Raises `EngineError` unless the server answers."""
        await self._call("GET", "/weight_info")

    async def generate(self, request: GenerateRequest) -> Generation:
        """See `Engine.generate`."""
        prompt, new = self._admissible(request)
        if not await self._entered(request.id):
            return no_tokens(prompt)
        version, name = self.version(request.policy), self._names[request.policy]
        told = None if request.policy in self._adapters else self._told
        given, stream = None, None
        if request.on_tokens is not None and new:
            if len(request.forced):  # a stream has no log-probs of what was sent
                try:
                    given = await self._forced_logprobs(request, prompt, name)
                except EngineAborted:
                    return no_tokens(prompt)
                request.on_tokens(request.forced, given)
            stream = wire.Stream(request.on_tokens, self._name)
        with_forced = stream is None and len(request.forced) > 0 and self.info.offers.scoring
        body = wire.generate_body(request, prompt, new, name.model, name.cache_key, with_forced=with_forced, seeds=self._seeds)
        reply = await self._send(request.id, body, stream)
        generation = wire.read_generation(request, len(prompt), reply, told, version, self._name, given)
        if request.on_tokens is not None and stream is None:
            request.on_tokens(generation.ids, generation.logprobs)
        return generation

    async def _forced_logprobs(self, request: GenerateRequest, prompt: IntArray, name: _Name) -> FloatArray:
        if not (self.info.offers.scoring and wire.forced_exactly(request.sampling)):
            return np.full(len(request.forced), np.nan, np.float32)
        asked = ScoreRequest(request.id, request.policy, np.concatenate([prompt, request.forced]), len(prompt))
        reply = await self._send(request.id, wire.score_body(asked, name.model, name.cache_key))
        return wire.read_scores(asked, reply, self._name)[0]

    async def score(self, request: ScoreRequest) -> Scores:
        """See `Engine.score`."""
        if not self.info.offers.scoring:
            raise UserError(f"{self._name} takes adapters, and cannot score: its engine dies of prompt log-probs in a batch")
        return await super().score(request)

    async def _score_there(self, request: ScoreRequest) -> Scores | None:
        name = self._names[request.policy]
        reply = await self._send(request.id, wire.score_body(request, name.model, name.cache_key))
        logprobs, text = wire.read_scores(request, reply, self._name)
        return Scores(logprobs, self._told.of(text)) if self._names[request.policy] is name else None

    async def _send(self, request_id: str, body: Body, stream: wire.Stream | None = None) -> Any:
        """The whole reply."""

        async def send(running: Running) -> Any:
            named = {**body, "request_id": running.rid}
            seconds = self._seconds.request
            if stream is None:
                return await self._http.call("POST", wire.GENERATE, named, deadline=running.deadline, seconds=seconds)
            named |= {"stream": True, "stream_options": {"include_usage": True}}
            await self._http.stream(wire.GENERATE, named, stream.event, deadline=running.deadline, seconds=seconds)
            return stream.whole()

        return await self._request(request_id, send, TOO_LONG)

    # --- what the server is ------------------------------------------------------------------------------------------------
    async def _greet(self) -> tuple[EngineInfo, dict[str, Version]]:
        found = (await self._call("GET", "/version"))["version"]
        if found not in self._known_versions:
            raise UserError(
                f"{self._name} has version {found}; known are {', '.join(sorted(self._known_versions))}. Start one of those, "
                "or hold this one with agentrl.testing.check_engine and pass known_versions"
            )
        try:
            config = (await self._call("GET", "/server_info?config_format=json"))["vllm_config"]
            started = (await self._call("GET", "/weight_info"))["weight_version"]
        except Refused as error:
            if error.status != 404:
                raise
            raise UserError(f"{self._name} has no routes for weights; start it with {START}") from error
        try:
            model = config["model_config"]
            self._refuse_useless(model, await self._routes())
            served = model["served_model_name"]
            self._names = dict.fromkeys(self._policies, _Name(served if isinstance(served, str) else served[0]))
            self._max_rank = int(config["lora_config"]["max_lora_rank"]) if config["lora_config"] is not None else 0
            max_context = int(model["max_model_len"])
            if config["device_config"]["device"] == "cpu":
                await self._greet_on_cpu(Path(model["model"]), bool(config["scheduler_config"]["enable_chunked_prefill"]))
            if self._folder == Path():
                self._folder = Path(model["model"])
            vocab_size = self._vocab_size or (await asyncio.to_thread(ModelFolder.read, self._folder)).vocab_size
        except (KeyError, TypeError, IndexError) as error:
            raise EngineError(f"{self._name}: its info lacks {error}; is its version a known one?") from error
        if self._adapters and not self._max_rank:
            raise UserError(
                f"{self._name} takes no adapters; start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
            )
        adapters = bool(self._adapters)
        offers = Offers(streaming=True, adapters=adapters, swap_in_flight=not adapters, scoring=not self._max_rank)
        return EngineInfo(f"vllm {found}", vocab_size, max_context, offers), {
            policy: wire.Versions(policy).of(started) for policy in self._policies
        }

    async def _greet_on_cpu(self, folder: Path, chunked: bool) -> None:
        """Two faults of 0.32.0 there: it packs a tied output matrix once, for all weights to come, and dies of a seeded request
        whose prompt is computed in pieces."""
        served = await asyncio.to_thread(ModelFolder.read, folder)
        if served.tied and not self._adapters:
            raise UserError(
                f"{self._name} serves a model with a tied output matrix on a CPU, where it would keep the old one when weights "
                f"change; serve a copy: python -m agentrl.engines.vllm.untied {folder} COPY"
            )
        self._folder, self._seeds = folder, not chunked

    async def _routes(self) -> bool:
        """Whether the token route is open; asked with an empty prompt, which is refused either way."""
        try:
            await self._call("POST", wire.GENERATE, {"token_ids": [], "sampling_params": {}})
        except Refused as error:
            return error.status not in (403, 404)
        return True

    def _refuse_useless(self, model: Any, open_route: bool) -> None:
        if not open_route:
            raise UserError(f"{self._name} takes no token ids; start it with {START}")
        if model["logprobs_mode"] != LOGPROBS_MODE:
            raise UserError(
                f"{self._name} gives log-probs by --logprobs-mode {model['logprobs_mode']}, which are not those of the "
                f"distribution that tokens are drawn from; start it with {START}"
            )

    # --- control -----------------------------------------------------------------------------------------------------------
    async def _abort_there(self, rid: str, seconds: float) -> None:
        await self._call("POST", "/abort_requests", {"request_ids": [wire.NAMED + rid]}, seconds=seconds)

    async def _pause_there(self, mode: PauseMode) -> None:
        await self._call("POST", f"/pause?mode={'abort' if mode == 'abort' else 'keep'}&clear_cache=false")
        if mode == "retract":  # drops the KV of requests that stand still; they compute it anew when they go on
            reply = await self._call("POST", "/reset_prefix_cache?reset_running_requests=true")
            if reply != {"success": True}:
                raise EngineError(f"{self._name}: could not drop the KV of its requests: {reply!r}", retryable=True)

    async def _resume_there(self) -> None:
        await self._call("POST", "/resume")

    async def _load(self, policy: str, weights: Weights, version: Version) -> None:
        if policy in self._adapters:
            await self._load_adapter(policy, adapter_in(weights, policy), version.step)
            return
        if self._adapters:
            raise UserError(f"{policy!r} is the frozen base of {', '.join(sorted(self._adapters))}; publish to those")
        await self._load_base(weights)
        text = str(version)
        (self._told.recomputed.add if self._mode == "retract" else self._told.recomputed.discard)(text)
        await self._call("POST", "/update_weight_version", {"new_version": text})
        told = (await self._call("GET", "/weight_info"))["weight_version"]
        if told != text:
            raise EngineError(f"{self._name}: published {text}, but it serves {told}; does another run publish to it?")
        self._names[policy] = _Name(self._names[policy].model)
        self._unsound = ""

    async def _load_base(self, weights: Weights) -> None:
        folder = path_in(weights)
        served = await asyncio.to_thread(ModelFolder.read, self._folder)
        if folder is not None and served.holds_head_of(shapes := await asyncio.to_thread(shapes_in, folder)):
            served.check(shapes, str(folder))
            await self._reload(folder)
            return
        tensors = served.with_head(tensors_of(weights if folder is None else await asyncio.to_thread(read_tensors, folder)))
        served.check(shapes_of(tensors), "what was published")
        async with written(tensors, self._exchange) as folder:
            await self._reload(folder)

    async def _reload(self, folder: Path) -> None:
        """Until it is known to have worked, the server may serve a mixture, or be about to die."""
        self._unsound = f"it did not come to the end of loading {folder}, of which its engine dies"
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}, "timeout": self._seconds.publish}
        await self._call("POST", "/collective_rpc", body, seconds=self._seconds.publish)

    async def _load_adapter(self, policy: str, folder: Path, step: int) -> None:
        """Under a name of its own: loaded under the old one, it would change, and be changed back by, requests in flight."""
        rank = int((await asyncio.to_thread(adapter_config, folder))["r"])
        await asyncio.to_thread(shapes_in, folder)
        if rank > self._max_rank:
            raise UserError(f"{folder} has rank {rank}; {self._name} takes up to {self._max_rank} (--max-lora-rank)")
        before, name = self._names[policy], _Name(f"{policy}-{step}-{secrets.token_hex(4)}")
        body = {"lora_name": name.model, "lora_path": str(folder)}
        await self._call("POST", LOAD_ADAPTER, body, seconds=self._seconds.publish)
        self._names[policy] = name
        if before.model != self._names[self._base].model:
            await self._call("POST", UNLOAD_ADAPTER, {"lora_name": before.model})
