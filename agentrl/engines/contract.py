"""What an engine is: token ids in, token ids, log-probs and version spans out.

The local engine, SGLang, its fake and any engine of a user's own answer the same contract; `agentrl.testing.check_engine`
holds it. Log-probs have SGLang's semantics: of softmax(logits / temperature) before top-k and top-p; a greedy request
gives those at temperature 1. Given tokens (`score`) are scored at temperature 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np

from agentrl.episode import (
    EMPTY_IDS,
    EMPTY_MAP,
    Column,
    Finish,
    FloatArray,
    IntArray,
    Sampling,
    Version,
    VersionSpan,
)
from agentrl.errors import UserError

PauseMode: TypeAlias = Literal["in_place", "retract", "abort"]
"""What happens to running requests: they keep their KV, lose it and recompute it, or end with what they have."""


@dataclass(frozen=True, slots=True)
class Media:
    """A reference by digest to an image, sound or video in the run's blobs."""

    digest: str
    kind: str


Part: TypeAlias = "IntArray | Media"


@dataclass(frozen=True, slots=True)
class Offers:
    """What an engine can do; a run that needs more is refused before its first token."""

    token_ids: bool = True
    forced_prefix: bool = True
    scoring: bool = True
    swap_in_flight: bool = True
    """Weights may change while requests run, with exact spans."""
    deterministic: bool = False
    """Tokens and log-probs of a request depend on weights, ids and seed alone."""
    media: bool = False
    columns: frozenset[str] = frozenset()
    """Further per-token columns it can give, such as "entropy"."""
    streaming: bool = False
    """`GenerateRequest.on_tokens` is called while the reply is sampled."""
    adapters: bool = False
    """Serves several policies that are LoRA adapters of one base; `publish` takes an adapter's folder."""
    memory: bool = False
    """It is a `Colocated`."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a running engine says of itself."""

    name: str
    vocab_size: int
    max_context: int
    offers: Offers


@dataclass(frozen=True, slots=True, eq=False)
class GenerateRequest:
    """Sample after `parts`.

    The first `len(forced)` sampled tokens are given: they count as sampled (ids and log-probs come back, `max_tokens`
    includes them) and are not drawn. Token j of the reply is drawn with the j-th random number of `seed`; so a reply cut
    after k tokens goes on, to the same tokens as if uncut, when its k tokens are passed as `forced`.
    """

    id: str
    """Unlike that of every other request in flight; `UserError` else."""
    policy: str
    parts: tuple[Part, ...]
    sampling: Sampling
    seed: int
    forced: IntArray = field(default_factory=lambda: EMPTY_IDS)
    session: str = ""
    """Requests of one session share prefixes; the episode's id."""
    columns: tuple[str, ...] = ()
    on_tokens: Callable[[IntArray, FloatArray], None] | None = None
    """Called on the event loop with each new piece of ids and log-probs, in order; together they are the reply's.

    An engine without `offers.streaming` calls it once, at the end.
    """

    @property
    def prompt(self) -> IntArray:
        """The prompt's ids, when it has no media."""
        ids = [part for part in self.parts if not isinstance(part, Media)]
        if len(ids) != len(self.parts):
            raise ValueError("a prompt with media has no plain ids")
        return ids[0] if len(ids) == 1 else np.concatenate(ids) if ids else EMPTY_IDS


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """What was sampled. Shapes: `ids`, `logprobs` and every column (S,).

    An aborted request gives what it had, with `finish="abort"`; it does not raise.
    """

    ids: IntArray
    logprobs: FloatArray
    spans: tuple[VersionSpan, ...]
    finish: Finish
    digest: bytes
    """`digest_ids(prompt, ids)`, computed from the engine's own buffer, never from the request."""
    logprobs_at: Literal["before_mask", "after_mask"] = "before_mask"
    matched: int | str | None = None
    """The stop id or string that ended it."""
    cached_tokens: int = 0
    columns: Mapping[str, Column] = EMPTY_MAP
    text: str | None = None
    """Only from an engine without token ids: its `ids` are the bytes of messages (`ChatRenderer`), and are never trained."""
    costs: Mapping[str, float] = EMPTY_MAP
    """What was paid besides, by name; it goes into the episode's ledger."""
    times: Mapping[str, float] = EMPTY_MAP
    """Seconds: "queued", "prefill", "decode", where known."""


@dataclass(frozen=True, slots=True, eq=False)
class ScoreRequest:
    """Log-probs of `ids[start:]` given what stands before each, at temperature 1. `start >= 1`."""

    id: str
    policy: str
    ids: IntArray
    start: int = 1
    session: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """`logprobs` has shape (len(ids) - start,)."""

    logprobs: FloatArray
    version: Version


Weights: TypeAlias = Mapping[str, Any]
"""Tensors by Hugging Face checkpoint name, or {"path": folder} for an engine that loads from disk."""


@runtime_checkable
class Engine(Protocol):
    """Serves policies. Entered once (`async with engine:`), then called from any task of that loop.

    `generate` raises `EngineError` when the engine fails, `ContextOverflow` when prompt and at least one token do not fit,
    `UserError` for ids outside the vocabulary. Cancelling the caller aborts the request and frees its place.
    """

    async def __aenter__(self) -> Engine: ...
    async def __aexit__(self, *exc: object) -> None: ...

    @property
    def info(self) -> EngineInfo: ...

    async def generate(self, request: GenerateRequest) -> Generation: ...

    async def score(self, request: ScoreRequest) -> Scores: ...

    async def abort(self, request_id: str) -> None:
        """Ends one running request; its `generate` returns with `finish="abort"`. An unknown id is no error."""
        ...

    async def pause(self, mode: PauseMode = "in_place") -> None:
        """Returns when nothing is sampled any more; requests that arrive now wait for `resume`."""
        ...

    async def resume(self) -> None: ...

    async def publish(self, policy: str, weights: Weights, version: Version) -> None:
        """Serve `policy` with new weights from the next token on. Works with requests in flight (spans tell)."""
        ...

    def version(self, policy: str) -> Version:
        """The version that serves `policy` now; `UserError` for a policy it does not serve."""
        ...


@runtime_checkable
class Colocated(Protocol):
    """An engine that shares its device with the learner, and makes room for it. Meant round a learner step, while paused."""

    async def release_memory(self) -> None:
        """Frees weights and cache; nothing may be asked of it but `resume_memory`."""
        ...

    async def resume_memory(self) -> None:
        """Takes the room back. The weights are those of the next `publish`, which must follow."""
        ...


def check_ids(ids: IntArray | Sequence[int], vocab_size: int, what: str) -> None:
    """Refuses ids outside the vocabulary before they are sent: they kill some servers."""
    array = np.asarray(ids)
    if array.size and (int(array.min()) < 0 or int(array.max()) >= vocab_size):
        bad = array[(array < 0) | (array >= vocab_size)][0]
        raise UserError(f"{what}: token id {bad} is outside the vocabulary of {vocab_size}; do tokenizer and model match?")
