"""AdamW and Muon as values. Importing this module does not import torch; `update` does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from agentrl.errors import UserError
from agentrl.learning.schedules import Constant, Schedule

if TYPE_CHECKING:
    from torch import Tensor

Tensors: TypeAlias = "Mapping[str, Tensor]"
State: TypeAlias = "dict[str, Tensor]"
"""By "<kind>/<weight>": "momentum" (Muon), "mean" and "square" (AdamW), each of its weight's shape."""


class Optimiser(Protocol):
    """Settings that know how to make one update."""

    def rate(self, updates: int) -> float:
        """The learning rate of the update after `updates` others, for the record."""
        ...

    def update(self, weights: Tensors, gradients: Tensors, state: State, updates: int) -> None:
        """Changes weights and state in place. `updates` counts those made before; state is empty before the first."""
        ...


@dataclass(frozen=True, slots=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), as `torch.optim.AdamW` computes it."""

    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    schedule: Schedule = field(default_factory=Constant)

    def __post_init__(self) -> None:
        _positive(self, ("lr", "eps"))

    def rate(self, updates: int) -> float:
        """See `Optimiser`."""
        return self.lr * self.schedule(updates)

    def update(self, weights: Tensors, gradients: Tensors, state: State, updates: int) -> None:
        """See `Optimiser`."""
        from agentrl.learning.updates import adamw

        adamw(self, weights, gradients, state, updates)


@dataclass(frozen=True, slots=True)
class Muon:
    """Momentum made orthogonal by Newton-Schulz (Jordan et al. 2024) for hidden matrices, as `torch.optim.Muon` computes it.

    All else (embedding, output matrix, norms, biases) is updated by AdamW at `adamw_lr`. `adjust="original"` scales the rate
    by sqrt(max(1, rows / columns)), "match_rms_adamw" by 0.2 sqrt(max(rows, columns)).
    """

    lr: float = 0.02
    adamw_lr: float = 2e-3
    momentum: float = 0.95
    nesterov: bool = True
    weight_decay: float = 0.0
    adjust: Literal["original", "match_rms_adamw"] = "original"
    iterations: int = 5
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    schedule: Schedule = field(default_factory=Constant)

    def __post_init__(self) -> None:
        _positive(self, ("lr", "adamw_lr", "eps", "iterations"))
        if self.adjust not in ("original", "match_rms_adamw"):
            raise UserError(f"Muon(adjust=...) is 'original' or 'match_rms_adamw', got {self.adjust!r}")

    def rate(self, updates: int) -> float:
        """See `Optimiser`; that of the hidden matrices."""
        return self.lr * self.schedule(updates)

    def update(self, weights: Tensors, gradients: Tensors, state: State, updates: int) -> None:
        """See `Optimiser`."""
        from agentrl.learning.updates import adamw, is_hidden_matrix, muon

        rest = [name for name in weights if not is_hidden_matrix(name, weights[name])]
        hidden = [name for name in weights if is_hidden_matrix(name, weights[name])]
        muon(self, _subset(weights, hidden), _subset(gradients, hidden), state, self.rate(updates))
        settings = AdamW(self.adamw_lr, self.betas, self.eps, self.weight_decay, self.schedule)
        adamw(settings, _subset(weights, rest), _subset(gradients, rest), state, updates)


def _subset(tensors: Tensors, names: Iterable[str]) -> Tensors:
    return {name: tensors[name] for name in names}


def _positive(settings: object, names: Iterable[str]) -> None:
    for name in names:
        value = getattr(settings, name)
        if not value > 0:
            raise UserError(f"{type(settings).__name__}({name}=...) must be above 0, got {value}")
