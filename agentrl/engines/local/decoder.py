"""The model as the engine runs it: fused matrices, one cache of keys and values, padded shapes.

Every call works on rows padded to an allowed width (`Shapes`), so that the bits of a token do not depend on what else is
in the batch. Axes: W padded rows, T tokens, R cache rows, C cache capacity, L keys looked at, M query rows of one
attention block, G query heads that share a key head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from agentrl.engines.local.attention import attend_one
from agentrl.engines.local.shapes import NEVER, Shapes
from agentrl.transformer import matmul
from agentrl.transformer.config import ModelConfig
from agentrl.transformer.layers import output_matrix, rms_norm, rope_at
from agentrl.transformer.weights import EMBEDDING, check_weights

Ints: TypeAlias = npt.NDArray[np.int64]
Attend: TypeAlias = Callable[[int, Tensor], Tensor]


class Layer(NamedTuple):
    """One decoder layer, its matrices joined where they share an input."""

    norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    qk_norm: Tensor | None
    """[heads + kv_heads, d]"""
    out: Tensor
    out_bias: Tensor | None
    mlp_norm: Tensor
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


@dataclass(frozen=True)
class Fused:
    """All weights of one version; copies, so that the learner may go on writing its own."""

    embedding: Tensor
    layers: tuple[Layer, ...]
    norm: Tensor
    output: Tensor


def fuse(config: ModelConfig, tensors: Mapping[str, Tensor]) -> Fused:
    """The weights as the engine runs them.

    The inner size of the MLP is padded with zeros to a multiple of 32: vectorised loops treat what is left after the last
    whole vector differently, and rows must not differ by where they stand.
    """
    pad = -config.intermediate_size % 32
    layers: list[Layer] = []
    for index in range(config.layers):
        name = f"model.layers.{index}."
        attention = name + "self_attn."

        def get(key: str, *, prefix: str = name) -> Tensor:
            return tensors[prefix + key].detach().clone()

        def join(keys: Sequence[str], rows: int = 0, *, prefix: str = name) -> Tensor | None:
            found = [tensors[prefix + key] for key in keys if prefix + key in tensors]
            padded = [F.pad(part, (0, 0) * (part.dim() - 1) + (0, rows)) for part in found]
            return torch.cat(padded).detach() if padded else None

        qkv = join([f"self_attn.{kind}_proj.weight" for kind in "qkv"])
        gate_up = join(["mlp.gate_proj.weight", "mlp.up_proj.weight"], pad)
        assert qkv is not None and gate_up is not None  # check_weights saw to it
        qk_norm = None
        if config.qk_norm:
            q_norm, k_norm = tensors[attention + "q_norm.weight"], tensors[attention + "k_norm.weight"]
            qk_norm = torch.cat((q_norm.expand(config.heads, -1), k_norm.expand(config.kv_heads, -1))).detach()
        layers.append(
            Layer(
                norm=get("input_layernorm.weight"),
                qkv=qkv,
                qkv_bias=join([f"self_attn.{kind}_proj.bias" for kind in "qkv"]),
                qk_norm=qk_norm,
                out=get("self_attn.o_proj.weight"),
                out_bias=join(["self_attn.o_proj.bias"]),
                mlp_norm=get("post_attention_layernorm.weight"),
                gate_up=gate_up,
                gate_up_bias=join(["mlp.gate_proj.bias", "mlp.up_proj.bias"], pad),
                down=F.pad(tensors[name + "mlp.down_proj.weight"].detach(), (0, pad)).clone(),
                down_bias=join(["mlp.down_proj.bias"]),
            )
        )
    embedding = tensors[EMBEDDING].detach().clone()
    output = embedding if config.tied else output_matrix(config, tensors).detach().clone()
    return Fused(embedding, tuple(layers), tensors["model.norm.weight"].detach().clone(), output)


class Decoder:
    """Weights, rotary tables and the cache of one policy. All methods run in the engine's thread, in inference mode."""

    def __init__(self, config: ModelConfig, weights: Fused, max_context: int, shapes: Shapes) -> None:
        self.config = config
        self.weights = weights
        self.shapes = shapes
        self.group = config.heads // config.kv_heads
        self.kv_width = config.kv_heads * config.head_dim
        cos, sin = rope_at(config, torch.arange(max_context))
        self.cos = cos[:, None].contiguous()
        # rotate(x) = x cos + (-x2, x1) sin; with the sign in the table the halves are only swapped.
        self.sin = torch.cat((-sin[:, : config.head_dim // 2], sin[:, config.head_dim // 2 :]), dim=-1)[:, None].contiguous()
        self.kv = torch.zeros(config.layers, 2, 0, 0, self.kv_width)
        self._key_at = torch.arange(max_context + 512)

    def read(self, tensors: Mapping[str, Any], where: str) -> Fused:
        """Checked copies of published tensors; `UserError` says what of `where` does not fit."""
        return fuse(self.config, check_weights(self.config, tensors, where))

    @property
    def bytes_per_token(self) -> int:
        """Of the cache."""
        return self.config.layers * 2 * self.kv_width * 4

    @property
    def rows(self) -> int:
        """Rows of the cache."""
        return self.kv.shape[2]

    def reserve(self, rows: int, capacity: int) -> None:
        """Makes the cache at least [rows, capacity], keeping what it holds."""
        have_rows, have_capacity = self.kv.shape[2], self.kv.shape[3]
        if rows <= have_rows and capacity <= have_capacity:
            return
        if capacity > have_capacity:
            capacity = max(capacity, have_capacity * 5 // 4)  # so that growing costs a copy now and then, not every block
        grown = torch.zeros(self.config.layers, 2, max(rows, have_rows), max(capacity, have_capacity), self.kv_width)
        grown[:, :, :have_rows, :have_capacity] = self.kv
        self.kv = grown

    def copy_out(self, row: int, length: int) -> Tensor:
        """[layers, 2, length, kv] of a row, as a copy."""
        return self.kv[:, :, row, :length].clone()

    def copy_in(self, row: int, kept: Tensor, length: int) -> None:
        """Writes the first `length` tokens of what `copy_out` gave into a row."""
        self.kv[:, :, row, :length] = kept[:, :, :length]

    def copy_row(self, source: int, target: int, length: int) -> None:
        """The first `length` tokens of one row into another."""
        self.kv[:, :, target, :length] = self.kv[:, :, source, :length]

    def decode(self, ids: Ints, positions: Ints) -> Tensor:
        """Logits [W, vocab] after one token for each of the rows 0..W-1; W must be an allowed width."""
        width = len(ids)
        at = torch.from_numpy(positions)
        keys = self.shapes.keys(int(positions.max()) + 1)
        self.reserve(width, keys)
        capacity = self.kv.shape[3]
        target = torch.arange(width) * capacity + at
        mask = torch.zeros(width, keys).masked_fill_(self._key_at[:keys] > at[:, None], NEVER)[:, None, None]
        join, heads = self.shapes.join, self.config.kv_heads
        block = self.shapes.queries(join * self.group)

        def attend(layer: int, q: Tensor) -> Tensor:
            k, v = self.kv[layer, :, :width, :keys].unflatten(-1, (heads, -1)).unbind()
            return attend_one(q, k, v, mask, join, block)

        return self.logits(self._forward(torch.from_numpy(ids), at, target, width, attend))

    def prefill(self, rows: Sequence[int], starts: Sequence[int], pieces: Sequence[npt.NDArray[Any]]) -> Tensor:
        """Final hidden states [W, hidden] of a piece of each row, tokens packed in order; fills the cache."""
        counts = np.array([len(piece) for piece in pieces])
        total, longest = int(counts.sum()), int(counts.max())
        width = self.shapes.width(total)
        order = np.repeat(np.arange(len(rows)), counts)
        offset = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
        ids, position = np.zeros(width, np.int64), np.zeros(width, np.int64)
        ids[:total] = np.concatenate(pieces)
        position[:total] = np.asarray(starts)[order] + offset
        keys = self.shapes.keys(int(position.max()) + 1)
        self.reserve(max(rows) + 1, keys)
        target = torch.from_numpy(np.asarray(rows)[order] * self.kv.shape[3] + position[:total])
        group, heads, dim = self.group, self.config.kv_heads, self.config.head_dim
        block = self.shapes.queries(longest * group)
        slot = torch.from_numpy(order * longest + offset)
        asked = torch.zeros(len(rows) * longest, dtype=torch.long)
        asked[slot] = torch.from_numpy(position[:total])
        seen = F.pad(asked.view(len(rows), longest).repeat_interleave(group, dim=1), (0, block - longest * group))
        mask = torch.zeros(len(rows), block, keys).masked_fill_(self._key_at[:keys] > seen[..., None], NEVER)[:, None]
        packed = list(rows) == list(range(rows[0], rows[0] + len(rows)))
        which: Any = slice(rows[0], rows[0] + len(rows)) if packed else torch.tensor(list(rows))

        def attend(layer: int, q: Tensor) -> Tensor:
            padded = q.new_zeros(len(rows) * longest, heads, group, dim)
            padded[slot] = q[:total].view(total, heads, group, dim)
            blocks = padded.view(len(rows), longest, heads, group, dim).transpose(1, 2).flatten(2, 3)
            blocks = F.pad(blocks, (0, 0, 0, block - longest * group))
            k, v = self.kv[layer, :, which, :keys].unflatten(-1, (heads, dim)).transpose(2, 3).unbind()
            mixed = F.scaled_dot_product_attention(blocks, k, v, attn_mask=mask)
            mixed = mixed[:, :, : longest * group].unflatten(2, (longest, group)).transpose(1, 2).flatten(0, 1)
            return F.pad(mixed[slot].flatten(1), (0, 0, 0, width - total))

        return self._forward(torch.from_numpy(ids), torch.from_numpy(position), target, total, attend)

    def logits(self, hidden: Tensor) -> Tensor:
        """[W, vocab] of final hidden states [W, hidden]; W must be an allowed width."""
        return matmul.product(hidden, self.weights.output)

    def _forward(self, ids: Tensor, positions: Tensor, target: Tensor, kept: int, attend: Attend) -> Tensor:
        """Rows through all layers; keys and values of the first `kept` rows go to `target` in the flattened cache."""
        eps, heads, dim = self.config.rms_eps, self.config.heads, self.config.head_dim
        turned = (heads + self.config.kv_heads) * dim
        x = F.embedding(ids, self.weights.embedding)
        cos, sin = self.cos[positions], self.sin[positions]
        for index, layer in enumerate(self.weights.layers):
            qkv = matmul.product(rms_norm(x, layer.norm, eps), layer.qkv, layer.qkv_bias)
            qk = qkv[:, :turned].unflatten(-1, (-1, dim))
            if layer.qk_norm is not None:
                qk = rms_norm(qk, layer.qk_norm, eps)
            qk = qk * cos + torch.cat((qk[..., dim // 2 :], qk[..., : dim // 2]), dim=-1) * sin
            cache = self.kv[index].view(2, -1, self.kv_width)
            cache[0].index_copy_(0, target, qk[:kept, heads:].flatten(1))
            cache[1].index_copy_(0, target, qkv[:kept, turned:])
            x = x + matmul.product(attend(index, qk[:, :heads]), layer.out, layer.out_bias)
            x = x + self.mlp(layer, x)
        return rms_norm(x, self.weights.norm, eps)

    def mlp(self, layer: Layer, x: Tensor) -> Tensor:
        """down(silu(gate) * up) of rows before the norm."""
        both = matmul.product(rms_norm(x, layer.mlp_norm, self.config.rms_eps), layer.gate_up, layer.gate_up_bias)
        gate, up = both.chunk(2, dim=-1)
        return matmul.product(F.silu(gate) * up, layer.down, layer.down_bias)
