"""What the event loop hands to the engine's thread, and what comes back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from agentrl.engines.contract import GenerateRequest, PauseMode, ScoreRequest, Weights
from agentrl.engines.local.prefixes import Source
from agentrl.episode import IntArray, Version, VersionSpan

Reply: TypeAlias = Callable[[Any], None]
"""Takes a result or an exception; called in the thread."""


@dataclass(eq=False)
class Job:
    """A request on its way: waiting, then running in a row.

    `ids` are all that were given: prompt and forced ones, or those to score; `start` is the first whose log-prob is asked,
    `limit` the length at which it ends.
    """

    key: int
    request: GenerateRequest | ScoreRequest
    ids: IntArray
    start: int
    limit: int
    reply: Reply
    greedy: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop_ids: tuple[int, ...] = ()
    stops: tuple[str, ...] = ()
    entropy: bool = False
    # from here on, the lane's own notes
    hashes: list[int] = field(default_factory=list)
    cached: int = 0
    source: Source | None = None
    """The kept context that its own began from."""
    mixed: bool = False
    """Its keys and values stem from several versions."""
    spans: list[VersionSpan] = field(default_factory=list)
    span_start: int = 0
    span_kv: Literal["kept", "recomputed"] = "kept"
    submitted: float = field(default_factory=time.monotonic)
    admitted: float = 0.0
    ready: float = 0.0


def generate_job(key: int, request: GenerateRequest, max_context: int, reply: Reply) -> Job:
    """The job of a checked request."""
    prompt, sampling = request.prompt, request.sampling
    greedy = sampling.temperature == 0 or sampling.top_k == 1
    return Job(
        key=key,
        request=request,
        ids=np.concatenate((prompt, request.forced)).astype(np.int32),
        start=len(prompt),
        limit=min(len(prompt) + sampling.max_tokens, max_context),
        reply=reply,
        greedy=greedy,
        temperature=1.0 if greedy else sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        seed=request.seed & 0xFFFFFFFFFFFFFFFF,
        stop_ids=sampling.stop_ids,
        stops=sampling.stop,
        entropy="entropy" in request.columns,
    )


@dataclass(frozen=True)
class Abort:
    """End one request, waiting or running; what it has goes to its own reply."""

    key: int
    policy: str


@dataclass(frozen=True)
class Pause:
    """Sample no more; replies at once, as commands are taken between steps."""

    mode: PauseMode
    reply: Reply


@dataclass(frozen=True)
class Resume:
    """Go on."""

    reply: Reply


@dataclass(frozen=True)
class Publish:
    """Take new weights; replies with None, or with why they were refused."""

    policy: str
    weights: Weights
    version: Version
    reply: Reply


@dataclass(frozen=True)
class Stop:
    """End the thread; whatever still runs fails."""


Command: TypeAlias = Job | Abort | Pause | Resume | Publish | Stop
