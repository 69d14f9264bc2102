"""A decoder of transformers in the engine's lane: one request at a time, a batch of one, transformers' own cache.

So the bits of a request depend on nothing beside it. What is given is computed in one pass, every later token, forced or
sampled, in a pass of its own: a reply that goes on from forced tokens therefore has the bits of one that was never cut.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agentrl.engines.contract import ScoreRequest
from agentrl.engines.local.decoder import Ints
from agentrl.engines.local.jobs import Job
from agentrl.engines.local.lane import Lane
from agentrl.engines.local.prefixes import Kept
from agentrl.engines.local.shapes import Shapes
from agentrl.engines.local.stops import Decode
from agentrl.episode import Version
from agentrl.transformer.foreign import Foreign, put
from agentrl.transformer.weights import check_weights

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Alone(Shapes):
    """Every shape as it comes: there is one row."""

    def width(self, rows: int) -> int:
        """`rows` itself."""
        return rows

    def keys(self, count: int) -> int:
        """`count` itself."""
        return count


class ForeignDecoder:
    """What a `Lane` asks of its decoder, for one row."""

    rows = 1
    group = 1

    def __init__(self, config: Foreign, weights: Mapping[str, Tensor], max_context: int) -> None:
        self.config = config
        self.shapes = Alone(widths=(max_context,), query_rows=(max_context,))
        self.together = 0
        """How many tokens of the request are computed in one pass."""
        self.scored_from = 0
        """The first place behind which log-probs are asked."""
        with torch.inference_mode(False):  # parameters cannot be exchanged for tensors made in it, nor the other way round
            self._module: Any = config.build()
        self._keeps = "logits_to_keep" in inspect.signature(self._module.forward).parameters
        self._cache: Any = None
        self._known = torch.empty(0)
        self.weights = _copies(weights)

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Those that serve now. The cache stays when they change."""
        return self._weights

    @weights.setter
    def weights(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights
        put(self._module, weights)

    def read(self, tensors: Mapping[str, Any], where: str) -> Mapping[str, Tensor]:
        """Checked copies of published tensors."""
        return _copies(check_weights(self.config, tensors, where))

    def reserve(self, rows: int, capacity: int) -> None:
        """Nothing: transformers' cache grows by itself."""

    def decode(self, ids: Ints, positions: Ints) -> Tensor:
        """Logits [1, vocab] after one more token."""
        del positions
        return self._pass(ids, keep=1)

    def prefill(self, rows: Sequence[int], starts: Sequence[int], pieces: Sequence[npt.NDArray[Any]]) -> Tensor:
        """Computes a request from its first token on; gives the places, of which `logits` makes logits."""
        assert list(rows) == [0] and list(starts) == [0]
        ids = pieces[0].astype(np.int64)
        self._cache = None
        first = min(self.together, len(ids))
        known = [self._pass(ids[:first], keep=first - self.scored_from)] if first > self.scored_from else []
        if first and not known:
            self._pass(ids[:first], keep=1)
        known += [self._pass(ids[place : place + 1], keep=1) for place in range(first, len(ids))]
        self._known = torch.cat(known) if known else torch.empty(0)
        return torch.arange(len(ids))

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, vocab] behind the places [n] that `prefill` gave."""
        return self._known[hidden - self.scored_from]

    def _pass(self, ids: Ints, *, keep: int) -> Tensor:
        """Logits [keep, vocab] behind the last `keep` of some more tokens."""
        wanted = {"logits_to_keep": keep} if self._keeps else {}
        out = self._module(input_ids=torch.from_numpy(ids)[None], past_key_values=self._cache, use_cache=True, **wanted)
        self._cache = out.past_key_values
        return out.logits[0, -keep:]


def _copies(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    with torch.inference_mode(False):
        return {name: tensor.clone() for name, tensor in weights.items()}


class ForeignLane(Lane):
    """A lane of one row, whose requests share no prefixes."""

    def __init__(self, decoder: ForeignDecoder, version: Version, *, decode: Decode | None) -> None:
        self._foreign = decoder
        super().__init__(decoder, version, slots=1, decode=decode, kept_tokens=0, cache_tokens=0)  # pyright: ignore[reportArgumentType]
        log.warning(
            "%s is run by transformers, one request at a time: slowly. Models of the Llama, Mistral, Qwen2 and Qwen3 families "
            "are computed here, many at once",
            decoder.config.architecture,
        )

    def _place(self, job: Job, source: Kept | int | None, common: int) -> int:
        self._foreign.scored_from = job.start - 1
        # the last prompt token is left for the pass that samples, also where forced tokens follow it
        self._foreign.together = len(job.ids) if isinstance(job.request, ScoreRequest) else job.start - 1
        return super()._place(job, source, common)
