"""Attention over a tree of paths: each token sees the tokens before it on its path, every such pair is computed once.

A piece (what a path adds to those before it) sees itself under the causal mask; a block is a rectangle without mask, all of
whose queries see all of its keys. Each part is one call of torch's flash kernel for the CPU, which also gives the log of each
query's sum of weights, so that the parts of a query merge into what one softmax over all its keys gives. Backward, the kernel
gets the merged output and log-sum, and then gives each part's share of the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from agentrl.learning.packing import Block, Ints, Microbatch

LONG = 128
"""A piece of at least so many tokens has a call of its own; shorter ones are padded with others of nearly their length."""
GROWTH = 1.3
"""Pieces are padded together as long as the longest has at most this many times the tokens of the shortest."""

GROUPED = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 9)
"""Whether the kernel takes fewer heads of keys than of queries, as torch's does since 2.9."""

_attend: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_attend_backward: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class PathAttention:
    """`Attend` over a microbatch."""

    def __init__(self, microbatch: Microbatch) -> None:
        self._squares = squares(microbatch.pieces)
        self._blocks = microbatch.blocks

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[T, heads, d] and twice [T, kv_heads, d] to [T, heads, d]."""
        del layer
        if not GROUPED and q.shape[1] != k.shape[1]:
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        return _Attention.apply(q, k, v, self._squares, self._blocks)


@dataclass(frozen=True, slots=True, eq=False)
class LongPiece:
    """One piece, in place."""

    tokens: slice

    def take(self, x: Tensor, padding: float | None = None) -> Tensor:
        """x [T, heads, ...] to [1, heads, length, ...]."""
        del padding
        return x[self.tokens].transpose(0, 1)[None]

    def put(self, x: Tensor, values: Tensor) -> None:
        """The inverse, into x."""
        x[self.tokens] = values[0].transpose(0, 1)


@dataclass(frozen=True, slots=True, eq=False)
class ShortPieces:
    """Pieces padded to one length: `pieces` x `length` slots."""

    pieces: int
    length: int
    tokens: Tensor
    """The token in each slot, one piece behind the other; padding holds token 0."""
    padding: Tensor
    """The slots that are padding."""
    slots: Tensor
    """The others."""
    own: Tensor
    """The tokens in those."""

    def take(self, x: Tensor, padding: float | None = None) -> Tensor:
        """x [T, heads, ...] to [pieces, heads, length, ...], with `padding`, if given, in the place of token 0."""
        spread = x.index_select(0, self.tokens)
        if padding is not None:
            spread.index_fill_(0, self.padding, padding)
        return spread.unflatten(0, (self.pieces, self.length)).transpose(1, 2)

    def put(self, x: Tensor, values: Tensor) -> None:
        """The inverse, into x; what padding holds is dropped."""
        x.index_copy_(0, self.own, values.transpose(1, 2).flatten(0, 1).index_select(0, self.slots))


Square: TypeAlias = LongPiece | ShortPieces


def squares(pieces: Ints) -> tuple[Square, ...]:
    """The pieces at [pieces[i], pieces[i + 1])."""
    lengths = np.diff(pieces)
    found: list[Square] = [LongPiece(slice(int(pieces[i]), int(pieces[i + 1]))) for i in np.flatnonzero(lengths >= LONG)]
    short = np.flatnonzero(lengths < LONG)
    short = short[np.argsort(lengths[short], kind="stable")]
    while len(short):
        size = int(np.searchsorted(lengths[short], lengths[short[0]] * GROWTH, side="right"))
        own = lengths[short[:size], None]
        places = np.arange(own[-1, 0])[None]
        filled = (places < own).reshape(-1)
        tokens = np.where(places < own, pieces[short[:size], None] + places, 0).reshape(-1)
        columns = (tokens, np.flatnonzero(~filled), np.flatnonzero(filled), tokens[filled])
        found.append(ShortPieces(size, places.size, *(torch.from_numpy(column) for column in columns)))
        short = short[size:]
    return tuple(found)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, squares: Sequence[Square], blocks: Sequence[Block]) -> Tensor:
        out, sums = torch.empty_like(q), q.new_empty(q.shape[:2])
        for square in squares:
            part, log_sum = _attend(square.take(q), square.take(k), square.take(v), 0.0, True)
            square.put(out, part)
            square.put(sums, log_sum)
        for block in blocks:
            part, log_sum = _attend(_heads(q[block.queries]), _heads(k[block.keys]), _heads(v[block.keys]))
            _merge(out[block.queries], sums[block.queries], part[0].transpose(0, 1), log_sum[0].t())
        ctx.save_for_backward(q, k, v, out, sums)
        ctx.squares, ctx.blocks = squares, blocks
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, sums = ctx.saved_tensors
        grad = grads[0]
        d_q, d_k, d_v = (torch.empty_like(x) for x in (q, k, v))
        for square in ctx.squares:
            inputs = (square.take(x) for x in (q, k, v, out))
            # In padding the gradient is 0 and so are the weights, exp(score - inf), whatever the rest is there.
            parts = _attend_backward(square.take(grad, 0.0), *inputs, square.take(sums, math.inf), 0.0, True)
            for total, part in zip((d_q, d_k, d_v), parts, strict=True):
                square.put(total, part)
        for block in ctx.blocks:
            of_queries, of_keys = block.queries, block.keys
            inputs = (grad[of_queries], q[of_queries], k[of_keys], v[of_keys], out[of_queries], sums[of_queries, :, None])
            *five, log_sum = (_heads(x) for x in inputs)
            parts = _attend_backward(*five, log_sum[..., 0], 0.0, False)
            for total, place, part in zip((d_q, d_k, d_v), (of_queries, of_keys, of_keys), parts, strict=True):
                total[place] += part[0].transpose(0, 1)
        return d_q, d_k, d_v, None, None


def _heads(x: Tensor) -> Tensor:
    """[n, heads, d] to [1, heads, n, d]."""
    return x.transpose(0, 1)[None]


def _merge(out: Tensor, sums: Tensor, part: Tensor, log_sum: Tensor) -> None:
    """Puts a part's output [n, heads, d] and log-sum [n, heads] to what its queries have so far."""
    both = torch.logaddexp(sums, log_sum)
    out.mul_((sums - both).exp_()[..., None]).addcmul_(part, (log_sum - both).exp_()[..., None])
    sums.copy_(both)
