"""What the fake server serves: the toy model, or any `Engine`, token by token."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from agentrl.engines.contract import Engine, GenerateRequest, ScoreRequest
from agentrl.engines.sglang.fake.toy import Row, ToyModel, draw, gumbel
from agentrl.engines.sglang.wire import is_greedy
from agentrl.episode import Sampling, Version, token_ids


@dataclass(frozen=True, slots=True)
class Draw:
    """How the next token is drawn: our own sampling, and what only the wire has."""

    sampling: Sampling
    seed: int | None
    min_p: float = 0.0
    logit_bias: Mapping[int, float] | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One token, its log-prob, and, where the model tells them, those of all tokens and the sampling mask."""

    token: int
    logprob: float
    row: Row | None = None
    keep: Any = None


class Served(Protocol):
    """A model behind the fake. `load` raises `UserError` for weights that it cannot take, and keeps the old ones."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def deterministic(self) -> bool: ...

    async def step(self, ids: Sequence[int], how: Draw) -> Step: ...

    async def score(self, ids: Sequence[int], start: int) -> list[float]: ...

    async def load(self, weights: Mapping[str, Any], version: str) -> None: ...


class ServedToy:
    """`deterministic`: noise is of (seed, position); otherwise seeds are ignored, as the real server does."""

    def __init__(self, model: ToyModel, *, deterministic: bool, noise_seed: int = 0) -> None:
        self.model = model
        self.deterministic = deterministic
        self._noise = np.random.default_rng(noise_seed)

    @property
    def vocab_size(self) -> int:
        """Of the model."""
        return self.model.vocab_size

    async def step(self, ids: Sequence[int], how: Draw) -> Step:
        """Draws what follows `ids`."""
        logits = self.model.logits(ids)
        for token, bias in (how.logit_bias or {}).items():
            logits[token] += bias
        greedy = is_greedy(how.sampling)
        if greedy:
            noise = logits
        elif self.deterministic:
            noise = gumbel(42 if how.seed is None else how.seed, len(ids), len(logits))
        else:
            noise = self._noise.gumbel(size=len(logits))
        token, row, keep = draw(logits, how.sampling, noise, how.min_p)
        return Step(token, float(row[token]), row, keep)

    async def score(self, ids: Sequence[int], start: int) -> list[float]:
        """At temperature 1."""
        return self.model.score(ids, start)

    async def load(self, weights: Mapping[str, Any], version: str) -> None:
        """Tensors, or {"path": folder}."""
        del version
        self.model.load(ToyModel.read(Path(weights["path"])).tensors if set(weights) == {"path"} else weights)


class ServedEngine:
    """Any engine, asked for one token at a time through its contract: the first id is the prompt, the rest is forced.

    So the j-th random number of a seed belongs to a position in the sequence, as on the real server.
    """

    def __init__(self, engine: Engine, policy: str) -> None:
        self.engine = engine
        self._policy = policy
        self._steps = itertools.count()
        self._loads = itertools.count(1)

    @property
    def vocab_size(self) -> int:
        """Of the engine."""
        return self.engine.info.vocab_size

    @property
    def deterministic(self) -> bool:
        """Of the engine."""
        return self.engine.info.offers.deterministic

    async def step(self, ids: Sequence[int], how: Draw) -> Step:
        """One token of the engine after `ids`."""
        sampling = replace(how.sampling, max_tokens=len(ids), stop_ids=(), stop=())
        prompt, forced = token_ids(ids[:1]), token_ids(ids[1:])
        request = GenerateRequest(f"step-{next(self._steps)}", self._policy, (prompt,), sampling, how.seed or 0, forced)
        generation = await self.engine.generate(request)
        return Step(int(generation.ids[-1]), float(generation.logprobs[-1]))

    async def score(self, ids: Sequence[int], start: int) -> list[float]:
        """The engine's own scores."""
        request = ScoreRequest(f"score-{next(self._steps)}", self._policy, token_ids(ids), start)
        return (await self.engine.score(request)).logprobs.tolist()

    async def load(self, weights: Mapping[str, Any], version: str) -> None:
        """Publishes to the engine."""
        await self.engine.publish(self._policy, weights, Version("fake", self._policy, next(self._loads), version))
