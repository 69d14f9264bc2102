"""`LocalEngine`: serves HF-format decoders on the CPU, in this process, from one thread of torch."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agentrl.engines.contract import (
    EngineInfo,
    GenerateRequest,
    Generation,
    Offers,
    PauseMode,
    ScoreRequest,
    Scores,
    Weights,
    check_ids,
)
from agentrl.engines.local.decoder import Decoder, fuse
from agentrl.engines.local.jobs import Abort, Command, Job, Pause, Publish, Reply, Resume, generate_job
from agentrl.engines.local.lane import Lane
from agentrl.engines.local.shapes import WIDTHS, Shapes, find_shapes
from agentrl.engines.local.stops import Decode, read_decoder
from agentrl.engines.local.worker import Worker
from agentrl.episode import EMPTY_LOGPROBS, Sampling, Version
from agentrl.errors import ContextOverflow, EngineError, UserError
from agentrl.learning.checkpoint import saved_version
from agentrl.transformer.config import ModelConfig
from agentrl.transformer.foreign import Foreign, read_config
from agentrl.transformer.weights import digest_weights, load_weights

KEPT_BYTES = 512 * 2**20
"""Default bound of what finished contexts may hold, over all policies."""


@dataclass(frozen=True)
class _Model:
    folder: Path
    config: ModelConfig | Foreign
    max_context: int


class LocalEngine:
    """An `Engine` (see its contract) over one or several policies, each a folder in HF layout.

    A bare path serves the policy "policy". `slots` requests run at once for each policy; `cache_bytes` bounds the keys
    and values of running requests of each, `prefix_cache_tokens` those of finished contexts (default: what fits 512 MiB;
    0 = none). `threads=None` takes torch's own number and holds it: bits may depend on it.
    """

    def __init__(
        self,
        models: Mapping[str, str | Path] | str | Path,
        *,
        slots: int = 64,
        max_context: int | None = None,
        threads: int | None = None,
        prefix_cache_tokens: int | None = None,
        cache_bytes: int = 4 * 2**30,
        lineage: str = "local",
    ) -> None:
        folders = {"policy": models} if isinstance(models, str | Path) else models
        if not folders:
            raise UserError("LocalEngine got no models; give a folder, or a mapping of policy names to folders")
        if not 1 <= slots <= WIDTHS[-1]:
            raise UserError(f"slots must be 1 to {WIDTHS[-1]}, got {slots}; start more engines for more")
        if max_context is not None and max_context < 2:
            raise UserError(f"max_context must be at least 2, got {max_context}; leave it out for the model's own")
        self._models: dict[str, _Model] = {}
        for policy, folder in folders.items():
            config = read_config(folder)
            limit = min(config.max_positions, max_context or config.max_positions)
            self._models[policy] = _Model(Path(folder), config, limit)
        self._slots = slots
        self._threads = threads
        self._kept_tokens = prefix_cache_tokens
        self._cache_bytes = cache_bytes
        self._lineage = lineage
        self._versions: dict[str, Version] = {}
        self._exact = True
        self._keys = itertools.count()
        self._open: dict[str, int] = {}
        self._policy_of: dict[int, str] = {}
        self._can_stop: dict[str, bool] = {}
        self._worker: Worker | None = None

    async def __aenter__(self) -> LocalEngine:
        worker = Worker(self._load, self._threads, asyncio.get_running_loop())
        await worker.start()
        self._worker = worker
        return self

    async def __aexit__(self, *exc: object) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.stop()

    def _load(self) -> Mapping[str, Lane]:
        """Reads the models and tries the shapes; runs in the worker's thread."""
        lanes: dict[str, Lane] = {}
        for policy, model in self._models.items():
            tensors = load_weights(model.folder)
            digest = digest_weights(tensors)
            version = saved_version(model.folder, digest) or Version(self._lineage, policy, 0, digest)
            self._versions[policy] = version
            decode = read_decoder(model.folder)
            self._can_stop[policy] = decode is not None
            if isinstance(model.config, Foreign):
                lanes[policy] = open_foreign(model.config, tensors, model.max_context, version, decode)
                continue
            decoder = Decoder(model.config, fuse(model.config, tensors), model.max_context, Shapes())
            decoder.shapes = find_shapes(decoder, self._slots)
            kept = self._kept_tokens
            if kept is None:
                kept = KEPT_BYTES // len(self._models) // decoder.bytes_per_token
            room = max(self._cache_bytes // decoder.bytes_per_token, model.max_context)
            lanes[policy] = Lane(decoder, version, slots=self._slots, decode=decode, kept_tokens=kept, cache_tokens=room)
            self._exact = self._exact and decoder.shapes.exact
        return lanes

    @property
    def info(self) -> EngineInfo:
        """With several policies, the largest vocabulary and the shortest context among them."""
        offers = Offers(deterministic=self._exact, columns=frozenset({"entropy"}))
        vocab = max(model.config.vocab_size for model in self._models.values())
        return EngineInfo("local", vocab, min(model.max_context for model in self._models.values()), offers)

    def version(self, policy: str) -> Version:
        """The version that serves `policy` now; its digest is known once the engine is entered."""
        self._model(policy)
        return self._versions.get(policy, Version(self._lineage, policy, 0))

    async def generate(self, request: GenerateRequest) -> Generation:
        """See `Engine.generate`."""
        model = self._model(request.policy)
        _check_generate(request, model, self._worker is not None and not self._can_stop[request.policy])
        generation = await self._run(request, lambda key, reply: generate_job(key, request, model.max_context, reply))
        if request.on_tokens is not None:
            request.on_tokens(generation.ids, generation.logprobs)
        return generation

    async def score(self, request: ScoreRequest) -> Scores:
        """See `Engine.score`. An abort raises `EngineAborted`, as half a score is none."""
        model = self._model(request.policy)
        size = len(request.ids)
        check_ids(request.ids, model.config.vocab_size, f"score {request.id!r}")
        if not 1 <= request.start <= size:
            raise UserError(f"score {request.id!r}: start must be 1 to {size} (the number of ids), got {request.start}")
        if size > model.max_context:
            raise ContextOverflow(f"score {request.id!r}: {size} ids do not fit the context of {model.max_context}")
        if request.start == size:
            return Scores(EMPTY_LOGPROBS, self.version(request.policy))
        ids = np.asarray(request.ids, np.int32)
        return await self._run(request, lambda key, reply: Job(key, request, ids, request.start, size, reply))

    async def abort(self, request_id: str) -> None:
        """See `Engine.abort`."""
        key = self._open.get(request_id)
        if key is not None:
            self._entered().send(Abort(key, self._policy_of[key]))

    async def pause(self, mode: PauseMode = "in_place") -> None:
        """See `Engine.pause`."""
        await self._ask(lambda reply: Pause(mode, reply))

    async def resume(self) -> None:
        """See `Engine.resume`."""
        await self._ask(Resume)

    async def publish(self, policy: str, weights: Weights, version: Version) -> None:
        """See `Engine.publish`. The weights are copied before this returns; wrong ones raise and change nothing."""
        self._model(policy)
        await self._ask(lambda reply: Publish(policy, weights, version, reply))
        self._versions[policy] = version

    async def _run(self, request: GenerateRequest | ScoreRequest, make: Callable[[int, Reply], Job]) -> Any:
        worker = self._entered()
        if request.id in self._open:
            raise UserError(f"request id {request.id!r} is already running; give each request its own")
        key = next(self._keys)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._open[request.id] = key
        self._policy_of[key] = request.policy
        worker.send(make(key, worker.reply_to(future)))
        try:
            return await future
        except asyncio.CancelledError:
            worker.send(Abort(key, request.policy))
            raise
        finally:
            del self._open[request.id], self._policy_of[key]

    async def _ask(self, make: Callable[[Reply], Command]) -> None:
        worker = self._entered()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        worker.send(make(worker.reply_to(future)))
        await future

    def _entered(self) -> Worker:
        if self._worker is None:
            raise EngineError("the local engine is not entered; use it inside `async with engine:`")
        if self._worker.failure is not None:
            raise EngineError(self._worker.failure)
        return self._worker

    def _model(self, policy: str) -> _Model:
        model = self._models.get(policy)
        if model is None:
            raise UserError(f"policy {policy!r} is not served here; this engine serves {', '.join(map(repr, self._models))}")
        return model


def open_foreign(
    config: Foreign, tensors: Mapping[str, Any], max_context: int, version: Version, decode: Decode | None
) -> Lane:
    """The lane of a model that transformers runs."""
    from agentrl.engines.local.foreign import ForeignDecoder, ForeignLane

    return ForeignLane(ForeignDecoder(config, tensors, max_context), version, decode=decode)


def _check_generate(request: GenerateRequest, model: _Model, no_text: bool) -> None:
    what, sampling = f"request {request.id!r}", request.sampling
    try:
        prompt = request.prompt
    except ValueError as error:
        raise UserError(f"{what}: the local engine takes token ids only, got media; use an engine that offers media") from error
    check_ids(prompt, model.config.vocab_size, f"{what}, prompt")
    check_ids(request.forced, model.config.vocab_size, f"{what}, forced prefix")
    if not len(prompt):
        raise UserError(f"{what}: the prompt is empty; give at least one token")
    _check_sampling(what, sampling)
    if len(request.forced) > sampling.max_tokens:
        raise UserError(f"{what}: {len(request.forced)} forced tokens exceed max_tokens={sampling.max_tokens}; raise it")
    if set(request.columns) - {"entropy"}:
        raise UserError(f"{what}: columns {sorted(request.columns)} asked, the local engine offers entropy only")
    if sampling.stop and no_text:
        raise UserError(
            f"{what}: stop strings need tokenizer.json in the model folder {str(model.folder)!r}; add it or use stop_ids"
        )
    needed = max(1, len(request.forced))
    if len(prompt) + needed > model.max_context:
        raise ContextOverflow(
            f"{what}: {len(prompt)} prompt tokens and {needed} to sample do not fit the context of {model.max_context}"
        )


def _check_sampling(what: str, sampling: Sampling) -> None:
    if not (np.isfinite(sampling.temperature) and sampling.temperature >= 0):
        raise UserError(f"{what}: temperature must be a number >= 0, got {sampling.temperature}")
    if not 0 < sampling.top_p <= 1:
        raise UserError(f"{what}: top_p must be in (0, 1], got {sampling.top_p}; 1 is off")
    if sampling.top_k < 0:
        raise UserError(f"{what}: top_k must be >= 0, got {sampling.top_k}; 0 is off")
    if sampling.max_tokens < 1:
        raise UserError(f"{what}: max_tokens must be at least 1, got {sampling.max_tokens}")
    if "" in sampling.stop:
        raise UserError(f"{what}: an empty stop string would stop at once; remove it")
