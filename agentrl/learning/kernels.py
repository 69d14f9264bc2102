"""Where the learner's time goes beside matrix products, with gradients written by hand.

Each function saves passes over memory that autograd would make; the values are those of the plain formulas.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_ELEMENTS = 1 << 24
"""Logits are made in chunks of at most this many numbers, and kept for the backward pass if they are one chunk."""


class Spread(torch.autograd.Function):
    """x [T, ...] to slots [S, ...]: a token stands in every slot that wants it. `extra` slots add to the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tokens: Tensor, slots: Tensor, extra: tuple[Tensor, Tensor] | None) -> Tensor:
        """`tokens` [S] gives the token of each slot; `slots` [T] the one slot of each token that is not extra."""
        ctx.slots, ctx.extra = slots, extra
        return x.index_select(0, tokens)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Sums the gradients of a token's slots; those of padding are dropped."""
        grad = grads[0].index_select(0, ctx.slots)
        if ctx.extra is not None:
            slots, tokens = ctx.extra
            grad.index_add_(0, tokens, grads[0].index_select(0, slots))
        return grad, None, None, None


class Collect(torch.autograd.Function):
    """Slots [S, ...] to x [T, ...]: the value of each token from its one slot."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, slots: Tensor) -> Tensor:
        """`slots` [T] are all different."""
        ctx.slots, ctx.shape = slots, values.shape
        return values.index_select(0, slots)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Zero for slots that nobody reads."""
        return grads[0].new_zeros(ctx.shape).index_copy_(0, ctx.slots, grads[0]), None


class TokenLogprobs(torch.autograd.Function):
    """log softmax(hidden W^T / temperature) at one target a row: [U, d], [V, d], [U], [U] to [U]."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, matrix: Tensor, targets: Tensor, temperatures: Tensor) -> Tensor:
        """Never more than one chunk of logits at a time."""
        rows = max(CHUNK_ELEMENTS // len(matrix), 1)
        chunks: list[Tensor] = []
        picked: list[Tensor] = []
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            chunk = _log_softmax(hidden[part], matrix, temperatures[part])
            picked.append(chunk.gather(1, targets[part, None])[:, 0])
            if len(hidden) <= rows:
                chunks.append(chunk)
        ctx.save_for_backward(hidden, matrix, targets, temperatures)
        ctx.rows, ctx.chunks = rows, chunks
        return torch.cat(picked) if picked else hidden.new_zeros(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """d logits = (one-hot - softmax) g / temperature, made in place of the log-softmax: so once only."""
        hidden, matrix, targets, temperatures = ctx.saved_tensors
        scale = grads[0] / temperatures
        d_hidden, d_matrix = torch.empty_like(hidden), torch.zeros_like(matrix)
        for start in range(0, len(hidden), ctx.rows):
            part = slice(start, start + ctx.rows)
            chunk = ctx.chunks.pop() if ctx.chunks else _log_softmax(hidden[part], matrix, temperatures[part])
            chunk.exp_().mul_(-scale[part, None])
            chunk.scatter_add_(1, targets[part, None], scale[part, None])
            d_hidden[part] = chunk @ matrix
            d_matrix.addmm_(chunk.T, hidden[part])
        return d_hidden, d_matrix, None, None


def _log_softmax(hidden: Tensor, matrix: Tensor, temperatures: Tensor) -> Tensor:
    logits = F.linear(hidden, matrix)
    if bool((temperatures != 1).any()):
        logits /= temperatures[:, None]
    return F.log_softmax(logits, -1)
