"""x W^T, where nearly all time goes, by the fastest float32 kernel that torch holds for the processor.

torch hands float32 products to MKL, which uses AVX-512 on Intel's processors alone and does half of what others can. oneDNN,
which torch ships for convolutions and compiled graphs, uses it everywhere and is as exact. Without AVX-512 or oneDNN, and for
other types, the product is torch's own. Which one it is depends on the machine alone, never on sizes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ONEDNN = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
_linear: Any = torch.ops.mkldnn._linear_pointwise if ONEDNN else None  # of the compiler's, hence the underscore


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T plus the bias: [T, in], [out, in], [out] to [T, out]; differentiable once."""
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _Linear.apply(x, weight, bias)
    return product(x, weight, bias)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear` without gradient; x and the weight may be transposed views."""
    if _linear is None or x.dtype != torch.float32 or not x.numel():
        return F.linear(x, weight, bias)
    return _linear(x, weight, bias, "none", [], "")


def outer(left: Tensor, right: Tensor) -> Tensor:
    """left^T right without gradient: [T, a], [T, b] to [a, b]. The kernel copies what comes first: the narrower one."""
    if left.shape[1] > right.shape[1]:
        return product(right.t(), left.t()).t()
    return product(left.t(), right.t())


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        d_x = product(grads[0], weight.t()) if for_x else None
        d_weight = outer(grads[0], x) if for_weight else None
        return d_x, d_weight, grads[0].sum(0) if for_bias else None
