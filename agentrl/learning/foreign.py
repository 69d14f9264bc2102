"""Log-probs by transformers' own module: path by path, each a batch of one."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from agentrl.learning.packing import Ints, Microbatch
from agentrl.transformer.adapter import merge
from agentrl.transformer.foreign import Foreign


class ForeignForward:
    """`Forward` of an architecture that is run by transformers. A shared token is computed again for every path."""

    def __init__(self, config: Foreign) -> None:
        self.apart, self._transposed = config.apart, config.transposed
        self._module: nn.Module = config.build()
        for parameter in self._module.parameters():
            parameter.data = torch.empty(0)  # values come with every call
        self._keeps = "logits_to_keep" in inspect.signature(self._module.forward).parameters

    def adapted(self, weights: Mapping[str, Tensor], adapter: Mapping[str, Tensor], scale: float) -> Mapping[str, Tensor]:
        """The adapter is merged, under autograd."""
        return merge(weights, adapter, scale, transposed=self._transposed)

    def score(self, tensors: Mapping[str, Tensor], microbatch: Microbatch) -> Tensor:
        """See `Forward`."""
        return self.score_with_entropy(tensors, microbatch, entropy=False)[0]

    def score_with_entropy(
        self, tensors: Mapping[str, Tensor], microbatch: Microbatch, *, entropy: bool = True
    ) -> tuple[Tensor, Tensor]:
        """See `Forward`."""
        order: list[Ints] = []
        picked: list[Tensor] = []
        entropies: list[Tensor] = []
        for ids, places, scored in scored_paths(microbatch):
            logits = self._logits(tensors, torch.from_numpy(ids), torch.from_numpy(places))
            logits = logits / torch.from_numpy(microbatch.temperatures[scored]).to(logits.dtype)[:, None]
            logprobs = F.log_softmax(logits, -1)
            picked.append(logprobs.gather(1, torch.from_numpy(microbatch.targets[scored])[:, None])[:, 0])
            if entropy:
                entropies.append(-(logprobs.exp() * logprobs).sum(-1))
            order.append(scored)
        back = torch.from_numpy(np.argsort(np.concatenate(order)))
        return torch.cat(picked)[back], torch.cat(entropies)[back] if entropy else back

    def _logits(self, tensors: Mapping[str, Tensor], ids: Tensor, places: Tensor) -> Tensor:
        """[len(places), vocab] behind the tokens at `places` of one path."""
        wanted = {"logits_to_keep": places} if self._keeps else {}
        out = functional_call(self._module, dict(tensors), (), {"input_ids": ids[None], "use_cache": False, **wanted})
        return out.logits[0] if self._keeps else out.logits[0, places]


def scored_paths(microbatch: Microbatch) -> Iterator[tuple[Ints, Ints, Ints]]:
    """Of each path that has some: its ids, the places on it at which something is scored, and which scored tokens these are.

    A token that several paths share is scored on the one that adds it.
    """
    order = np.argsort(microbatch.scored_at, kind="stable")
    bounds = np.searchsorted(microbatch.scored_at[order], microbatch.pieces)
    for piece, (first, last) in enumerate(pairwise(bounds.tolist())):
        if first < last:
            scored = order[first:last]
            places = microbatch.positions[microbatch.scored_at[scored]]
            yield microbatch.ids[microbatch.path(piece)[: places[-1] + 1]], places, scored
