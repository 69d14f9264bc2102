"""The arithmetic of the optimisers, on dicts of tensors.

Written out, not taken from `torch.optim`: the state is a dict of tensors by name, which a checkpoint restores to the bit;
matrices of one shape are orthogonalised together; and starting costs nothing (torch's optimisers import its compiler on first
use, more than a CPU second). Tests hold them against `torch.optim`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from agentrl.transformer.weights import EMBEDDING, OUTPUT

if TYPE_CHECKING:
    from agentrl.learning.optimisers import AdamW, Muon, State, Tensors

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration: https://kellerjordan.github.io/posts/muon/"""
TINY = 1e-7


def is_hidden_matrix(name: str, tensor: Tensor) -> bool:
    """Whether Muon updates it."""
    return tensor.ndim == 2 and name not in (EMBEDDING, OUTPUT)


@torch.no_grad()
def adamw(settings: AdamW, weights: Tensors, gradients: Tensors, state: State, updates: int) -> None:
    """One AdamW update in place."""
    (beta1, beta2), rate = settings.betas, settings.rate(updates)
    bias1, bias2 = 1 - beta1 ** (updates + 1), 1 - beta2 ** (updates + 1)
    for name, weight in weights.items():
        gradient = gradients[name]
        mean = state.setdefault(f"mean/{name}", torch.zeros_like(weight))
        square = state.setdefault(f"square/{name}", torch.zeros_like(weight))
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        scale = square.sqrt().div_(math.sqrt(bias2)).add_(settings.eps)
        if settings.weight_decay:
            weight.mul_(1 - rate * settings.weight_decay)
        weight.addcdiv_(mean, scale, value=-rate / bias1)


@torch.no_grad()
def muon(settings: Muon, weights: Tensors, gradients: Tensors, state: State, rate: float) -> None:
    """One Muon update in place."""
    by_shape: dict[tuple[int, int], list[str]] = {}
    for name, weight in weights.items():
        rows, columns = weight.shape
        by_shape.setdefault((min(rows, columns), max(rows, columns)), []).append(name)
    for names in by_shape.values():
        wide: list[Tensor] = []
        for name in names:
            momentum = state.setdefault(f"momentum/{name}", torch.zeros_like(weights[name]))
            momentum.lerp_(gradients[name], 1 - settings.momentum)
            step = gradients[name].lerp(momentum, settings.momentum) if settings.nesterov else momentum
            wide.append(step.T if step.shape[0] > step.shape[1] else step)
        for name, step in zip(names, orthogonal(torch.stack(wide), settings.iterations), strict=True):
            weight = weights[name]
            rows, columns = weight.shape
            tall = rows > columns
            original = math.sqrt(max(1.0, rows / columns))
            factor = original if settings.adjust == "original" else 0.2 * math.sqrt(max(rows, columns))
            if settings.weight_decay:
                weight.mul_(1 - rate * settings.weight_decay)
            weight.add_(step.T if tall else step, alpha=-rate * factor)


def orthogonal(matrices: Tensor, iterations: int) -> Tensor:
    """[n, rows, columns] with rows <= columns to nearly the nearest semi-orthogonal ones, computed in bfloat16."""
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16()
    x = x / x.flatten(1).norm(dim=1).clamp(min=TINY)[:, None, None]
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
