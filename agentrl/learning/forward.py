"""Log-probs of the scored tokens of a microbatch, with gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from agentrl.learning.kernels import Collect, Spread, TokenLogprobs
from agentrl.learning.packing import Microbatch
from agentrl.transformer.adapter import UP
from agentrl.transformer.config import ModelConfig
from agentrl.transformer.foreign import Foreign
from agentrl.transformer.layers import forward, output_matrix
from agentrl.transformer.weights import EMBEDDING, OUTPUT


class Forward(Protocol):
    """How a model scores a microbatch with given tensors, under autograd."""

    apart: tuple[str, ...]
    """Tensors that LoRA leaves alone."""

    def adapted(self, weights: Mapping[str, Tensor], adapter: Mapping[str, Tensor], scale: float) -> Mapping[str, Tensor]:
        """The tensors to compute with, so that the gradient reaches the adapter."""
        ...

    def score(self, tensors: Mapping[str, Tensor], microbatch: Microbatch) -> Tensor:
        """Log-prob of each scored token, (U,), at the temperature at which it was drawn."""
        ...

    def score_with_entropy(self, tensors: Mapping[str, Tensor], microbatch: Microbatch) -> tuple[Tensor, Tensor]:
        """The same, and the entropy of the distribution each was drawn from, (U,)."""
        ...


def open_forward(config: ModelConfig | Foreign) -> Forward:
    """The packed forward pass of this package, or that of transformers, path by path."""
    if isinstance(config, ModelConfig):
        return PackedForward(config)
    from agentrl.learning.foreign import ForeignForward

    return ForeignForward(config)


class PackedForward:
    """`Forward` of the decoder that `agentrl.transformer` computes: all paths at once."""

    apart: tuple[str, ...] = (EMBEDDING, OUTPUT)

    def __init__(self, config: ModelConfig) -> None:
        self._config = config

    def adapted(self, weights: Mapping[str, Tensor], adapter: Mapping[str, Tensor], scale: float) -> Mapping[str, Tensor]:
        """The adapter stands beside the weights, its scale in B: cheaper than the gradient of a merged matrix."""
        return {**weights, **{name: tensor * scale if name.endswith(UP) else tensor for name, tensor in adapter.items()}}

    def score(self, tensors: Mapping[str, Tensor], microbatch: Microbatch) -> Tensor:
        """See `Forward`."""
        return score(self._config, tensors, microbatch)

    def score_with_entropy(self, tensors: Mapping[str, Tensor], microbatch: Microbatch) -> tuple[Tensor, Tensor]:
        """See `Forward`."""
        return score_with_entropy(self._config, tensors, microbatch)


class PathAttention:
    """`Attend` over packed paths: each token sees the tokens before it on its path.

    A path attends as a row of its own, padded with a few others of nearly its length, under the plain causal mask: padding
    stands behind every real token, so nothing sees it. A token that several paths share is computed as part of the first
    and lends its key and value to the rest.
    """

    def __init__(self, microbatch: Microbatch) -> None:
        self._shapes = [(bucket.paths, bucket.length) for bucket in microbatch.buckets]
        self._tokens = torch.cat([torch.from_numpy(bucket.tokens) for bucket in microbatch.buckets])
        self._slots = torch.from_numpy(microbatch.slots)
        slots, tokens = microbatch.extra
        self._extra = (torch.from_numpy(slots), torch.from_numpy(tokens)) if len(slots) else None

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[T, heads, d] and twice [T, kv_heads, d] to [T, heads, d]."""
        del layer
        sizes = [paths * length for paths, length in self._shapes]
        queries = self._spread(q, None).split(sizes)
        keys, values = (self._spread(x, self._extra).split(sizes) for x in (k, v))
        mixed: list[Tensor] = []
        for shape, *parts in zip(self._shapes, queries, keys, values, strict=True):
            query, key, value = (part.unflatten(0, shape).transpose(1, 2) for part in parts)
            grouped = q.shape[1] != k.shape[1]
            out = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)
            mixed.append(out.transpose(1, 2).flatten(0, 1))
        return Collect.apply(torch.cat(mixed) if len(mixed) > 1 else mixed[0], self._slots)

    def _spread(self, x: Tensor, extra: tuple[Tensor, Tensor] | None) -> Tensor:
        return Spread.apply(x, self._tokens, self._slots, extra)


def score(config: ModelConfig, tensors: Mapping[str, Tensor], microbatch: Microbatch) -> Tensor:
    """Log-prob of each scored token, (U,), at the temperature at which it was drawn."""
    hidden = _hidden(config, tensors, microbatch)
    targets = torch.from_numpy(microbatch.targets)
    return TokenLogprobs.apply(hidden, output_matrix(config, tensors), targets, _temperatures(microbatch, hidden))


def score_with_entropy(config: ModelConfig, tensors: Mapping[str, Tensor], microbatch: Microbatch) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy of the distribution each scored token was drawn from, (U,) both; makes all logits at once."""
    hidden = _hidden(config, tensors, microbatch)
    logits = F.linear(hidden, output_matrix(config, tensors)) / _temperatures(microbatch, hidden)[:, None]
    logprobs = F.log_softmax(logits, -1)
    picked = logprobs.gather(1, torch.from_numpy(microbatch.targets)[:, None])[:, 0]
    return picked, -(logprobs.exp() * logprobs).sum(-1)


def _hidden(config: ModelConfig, tensors: Mapping[str, Tensor], microbatch: Microbatch) -> Tensor:
    ids, positions = torch.from_numpy(microbatch.ids), torch.from_numpy(microbatch.positions)
    hidden = forward(config, tensors, ids, positions, PathAttention(microbatch))
    return hidden.index_select(0, torch.from_numpy(microbatch.scored_at))


def _temperatures(microbatch: Microbatch, like: Tensor) -> Tensor:
    return torch.from_numpy(microbatch.temperatures).to(like.dtype)
