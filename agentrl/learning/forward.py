"""Log-probs of the scored tokens of a microbatch, with gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from agentrl.learning.attention import PathAttention
from agentrl.learning.kernels import TokenLogprobs
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
