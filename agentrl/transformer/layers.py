"""The decoder as pure functions on packed rows [T, ...]: T tokens of any sequences, their positions given beside them.

The arithmetic keeps the order of transformers, so that log-probs agree with it to float32 rounding. Every function works
under autograd and is row-wise, except `attend`, which the caller brings: only it mixes tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from agentrl.transformer import matmul
from agentrl.transformer.adapter import DOWN, UP
from agentrl.transformer.config import ModelConfig
from agentrl.transformer.weights import EMBEDDING, OUTPUT

Attend: TypeAlias = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q [T, heads, d], k [T, kv_heads, d], v [T, kv_heads, d]) -> [T, heads, d]; scores are scaled by d ** -0.5."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight * x / sqrt(mean(x^2) + eps) over the last axis."""
    variance = x.pow(2).mean(-1, keepdim=True)
    return weight * (x * torch.rsqrt(variance + eps))


def rope_frequencies(config: ModelConfig) -> Tensor:
    """Inverse frequencies [head_dim / 2], scaled as the config asks."""
    dim = config.head_dim
    inv_freq = 1.0 / (config.rope_theta ** (torch.arange(0, dim, 2, dtype=torch.float) / dim))
    scaling = config.rope_scaling
    if scaling is None:
        return inv_freq
    if scaling.kind == "linear":
        return inv_freq / scaling.factor
    # Llama 3.1: long wavelengths are divided by the factor, short ones kept, those between blended.
    wavelength = 2 * math.pi / inv_freq
    low = scaling.original_max_positions / scaling.low_freq_factor
    high = scaling.original_max_positions / scaling.high_freq_factor
    scaled = torch.where(wavelength > low, inv_freq / scaling.factor, inv_freq)
    smooth = (scaling.original_max_positions / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blended = (1 - smooth) * scaled / scaling.factor + smooth * scaled
    return torch.where(~(wavelength < high) & ~(wavelength > low), blended, scaled)


def rope_at(config: ModelConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """(cos, sin), each [T, head_dim], at the given positions [T]."""
    freqs = positions[:, None].float() * rope_frequencies(config).to(positions.device)
    emb = torch.cat((freqs, freqs), dim=-1)
    return emb.cos(), emb.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [T, heads, d] turned by (cos, sin) [T, d]."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos[:, None] + turned * sin[:, None]


def linear(x: Tensor, tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """x W^T, plus the bias if the model has one, plus (x A^T) B^T if `tensors` has an adapter (its scale is in B)."""
    out = matmul.linear(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))
    down = tensors.get(name + DOWN)
    return out if down is None else out + matmul.linear(matmul.linear(x, down), tensors[name + UP])


def project(
    config: ModelConfig, tensors: Mapping[str, Tensor], layer: int, x: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(q [T, heads, d], k [T, kv_heads, d], v [T, kv_heads, d]) of normed rows x [T, hidden]; q and k rotated."""
    name = f"model.layers.{layer}.self_attn."
    q = linear(x, tensors, name + "q_proj").unflatten(-1, (config.heads, config.head_dim))
    k = linear(x, tensors, name + "k_proj").unflatten(-1, (config.kv_heads, config.head_dim))
    v = linear(x, tensors, name + "v_proj").unflatten(-1, (config.kv_heads, config.head_dim))
    if config.qk_norm:
        q = rms_norm(q, tensors[name + "q_norm.weight"], config.rms_eps)
        k = rms_norm(k, tensors[name + "k_norm.weight"], config.rms_eps)
    return rotate(q, cos, sin), rotate(k, cos, sin), v


def mlp(tensors: Mapping[str, Tensor], layer: int, x: Tensor) -> Tensor:
    """down(silu(gate(x)) * up(x)) of normed rows x [T, hidden]."""
    name = f"model.layers.{layer}.mlp."
    gated = F.silu(linear(x, tensors, name + "gate_proj")) * linear(x, tensors, name + "up_proj")
    return linear(gated, tensors, name + "down_proj")


def block(
    config: ModelConfig, tensors: Mapping[str, Tensor], layer: int, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend
) -> Tensor:
    """One decoder layer on rows x [T, hidden]."""
    name = f"model.layers.{layer}."
    normed = rms_norm(x, tensors[name + "input_layernorm.weight"], config.rms_eps)
    mixed = attend(layer, *project(config, tensors, layer, normed, cos, sin))
    x = x + linear(mixed.flatten(-2), tensors, name + "self_attn.o_proj")
    return x + mlp(tensors, layer, rms_norm(x, tensors[name + "post_attention_layernorm.weight"], config.rms_eps))


def forward(config: ModelConfig, tensors: Mapping[str, Tensor], ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
    """Final normed hidden states [T, hidden] of packed ids [T] at positions [T]."""
    x = F.embedding(ids, tensors[EMBEDDING])
    cos, sin = rope_at(config, positions)
    for layer in range(config.layers):
        x = block(config, tensors, layer, x, cos, sin, attend)
    return rms_norm(x, tensors["model.norm.weight"], config.rms_eps)


def output_matrix(config: ModelConfig, tensors: Mapping[str, Tensor]) -> Tensor:
    """[vocab, hidden]; the embedding matrix when tied."""
    return tensors[EMBEDDING if config.tied else OUTPUT]


def logits(config: ModelConfig, tensors: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
    """[T, vocab] of final hidden states [T, hidden]."""
    return F.linear(hidden, output_matrix(config, tensors))


def attend_causal(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`Attend` for the rows of one sequence in order; the plainest one, and the reference for cleverer ones."""
    del layer
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None], k.transpose(0, 1)[None], v.transpose(0, 1)[None], is_causal=True, enable_gqa=True
    )
    return out[0].transpose(0, 1)
