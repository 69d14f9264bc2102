"""What the fake server serves: the toy model, or any `Engine`, token by token."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from agentrl.engines.contract import Engine, GenerateRequest, ScoreRequest
from agentrl.engines.replies import is_greedy
from agentrl.engines.sglang.fake.toy import Row, ToyModel, draw, gumbel, read_tensors, with_adapter
from agentrl.episode import Sampling, Version, token_ids
from agentrl.errors import UserError


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
    """A model behind the fake. `load` raises `UserError` for weights that it cannot take, and keeps the old ones.

    An adapter is the folder of one; `add_adapter` raises `UserError` for what is none.
    """

    @property
    def vocab_size(self) -> int: ...

    @property
    def deterministic(self) -> bool: ...

    async def step(self, ids: Sequence[int], how: Draw, adapter: str | None = None) -> Step: ...

    async def score(self, ids: Sequence[int], start: int, adapter: str | None = None) -> list[float]: ...

    async def load(self, weights: Mapping[str, Any], version: str) -> None: ...

    def add_adapter(self, folder: str) -> None: ...


class ServedToy:
    """`deterministic`: noise is of (seed, position); otherwise seeds are ignored, as the real server does."""

    def __init__(self, model: ToyModel, *, deterministic: bool, noise_seed: int = 0) -> None:
        self.model = model
        self.deterministic = deterministic
        self._noise = np.random.default_rng(noise_seed)
        self._adapted: dict[str, ToyModel] = {}

    @property
    def vocab_size(self) -> int:
        """Of the model."""
        return self.model.vocab_size

    async def step(self, ids: Sequence[int], how: Draw, adapter: str | None = None) -> Step:
        """Draws what follows `ids`."""
        logits = self._of(adapter).logits(ids)
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

    async def score(self, ids: Sequence[int], start: int, adapter: str | None = None) -> list[float]:
        """At temperature 1."""
        return self._of(adapter).score(ids, start)

    async def load(self, weights: Mapping[str, Any], version: str) -> None:
        """Tensors, or {"path": folder}. As with the real server, those not given stay and unknown names are passed over."""
        del version
        given = read_tensors(Path(weights["path"])) if set(weights) == {"path"} else weights
        known = {name: value for name, value in given.items() if name in self.model.tensors}
        for name, value in known.items():
            if tuple(value.shape) != self.model.tensors[name].shape:
                raise UserError(f"{name} has shape {tuple(value.shape)}, not {self.model.tensors[name].shape}")
        self.model.load({**self.model.tensors, **known})
        self._adapted.clear()

    def add_adapter(self, folder: str) -> None:
        """Read when it is first used, and again after new weights."""
        if not (Path(folder) / "adapter_config.json").is_file():
            raise UserError(f"Repo id must use alphanumeric chars, '-', '_' or '.': '{folder}'.")

    def _of(self, adapter: str | None) -> ToyModel:
        if adapter is None:
            return self.model
        if adapter not in self._adapted:
            self._adapted[adapter] = with_adapter(self.model.tensors, Path(adapter))
        return self._adapted[adapter]


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

    async def step(self, ids: Sequence[int], how: Draw, adapter: str | None = None) -> Step:
        """One token of the engine after `ids`."""
        del adapter
        sampling = replace(how.sampling, max_tokens=len(ids), stop_ids=(), stop=())
        prompt, forced = token_ids(ids[:1]), token_ids(ids[1:])
        request = GenerateRequest(f"step-{next(self._steps)}", self._policy, (prompt,), sampling, how.seed or 0, forced)
        generation = await self.engine.generate(request)
        return Step(int(generation.ids[-1]), float(generation.logprobs[-1]))

    async def score(self, ids: Sequence[int], start: int, adapter: str | None = None) -> list[float]:
        """The engine's own scores."""
        del adapter
        request = ScoreRequest(f"score-{next(self._steps)}", self._policy, token_ids(ids), start)
        return (await self.engine.score(request)).logprobs.tolist()

    async def load(self, weights: Mapping[str, Any], version: str) -> None:
        """Publishes to the engine."""
        await self.engine.publish(self._policy, weights, Version("fake", self._policy, next(self._loads), version))

    def add_adapter(self, folder: str) -> None:
        """An engine of its own has none."""
        raise UserError(f"the fake serves an engine, which takes no adapter such as {folder}")
