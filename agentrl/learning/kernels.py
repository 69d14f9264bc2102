"""Where the learner's time goes beside matrix products, with gradients written by hand.

Each function saves passes over memory that autograd would make; the values are those of the plain formulas.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from agentrl.transformer.matmul import outer, product

CHUNK_ELEMENTS = 1 << 21
"""Logits are made in chunks of about this many numbers: 8 MB, which the processor's caches hold."""
LEAST_ROWS = 64
"""A chunk has at least as many rows, for the matrix is read once for each chunk."""


class TokenLogprobs(torch.autograd.Function):
    """log softmax(hidden W^T / temperature) at one target a row: [U, d], [V, d], [U], [U] to [U].

    Never more than one chunk of logits at a time: the backward pass makes them again, which costs less than to keep them.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, matrix: Tensor, targets: Tensor, temperatures: Tensor) -> Tensor:
        """Keeps the log of each row's sum."""
        picked, sums = hidden.new_empty(len(hidden)), hidden.new_empty(len(hidden))
        for part in _chunks(hidden, matrix):
            logits = _logits(hidden[part], matrix, temperatures[part])
            sums[part] = logits.logsumexp(-1)
            picked[part] = logits.gather(1, targets[part, None])[:, 0] - sums[part]
        ctx.save_for_backward(hidden, matrix, targets, temperatures, sums)
        return picked

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """d logits = (one-hot - softmax) g / temperature, made in place of the logits."""
        hidden, matrix, targets, temperatures, sums = ctx.saved_tensors
        scale = grads[0] / temperatures
        d_hidden = torch.empty_like(hidden)
        d_matrix = matrix.new_zeros(matrix.shape[::-1]) if ctx.needs_input_grad[1] else None  # transposed, as `outer` gives it
        for part in _chunks(hidden, matrix):
            logits = _logits(hidden[part], matrix, temperatures[part])
            logits.sub_(sums[part, None]).exp_().mul_(-scale[part, None])
            logits.scatter_add_(1, targets[part, None], scale[part, None])
            d_hidden[part] = product(logits, matrix.t())
            if d_matrix is not None:
                d_matrix += outer(hidden[part], logits)
        return d_hidden, None if d_matrix is None else d_matrix.t(), None, None


def _chunks(hidden: Tensor, matrix: Tensor) -> Iterator[slice]:
    rows = max(CHUNK_ELEMENTS // len(matrix), LEAST_ROWS)
    return (slice(start, start + rows) for start in range(0, len(hidden), rows))


def _logits(hidden: Tensor, matrix: Tensor, temperatures: Tensor) -> Tensor:
    logits = product(hidden, matrix)
    return logits.div_(temperatures[:, None]) if bool((temperatures != 1).any()) else logits
