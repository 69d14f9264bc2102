"""Importance weights for tokens that other weights, or another engine's arithmetic, have drawn.

With mu the behaviour policy as the engine recorded it and pi the learner's policy before its update, both at the temperature
at which the token was drawn, the weight of a token is

    w = pi / mu                       by="token"
    w = product of pi / mu over the trained tokens of the row       by="sequence"

Its log is clamped to [-20, 20], as in verl. Weights carry no gradient. One update a batch: so w holds both the engine's
rounding and the staleness of the weights that sampled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from agentrl.errors import UserError
from agentrl.objectives.contract import Entries
from agentrl.objectives.divergence import MAX_LOG_RATIO

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Corrected:
    """What becomes of each token, shape (N,): the factor of its policy loss, and whether it counts; None = all do."""

    weight: Tensor
    kept: Tensor | None
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Truncated:
    """min(w, at): truncated importance sampling, TIS (Yao et al. 2025, "Your efficient RL framework secretly brings you
    off-policy RL training"; Ionides 2008). `by` as in the module; sequences want a larger bound than tokens."""

    at: float = 2.0
    by: Literal["token", "sequence"] = "token"

    def __post_init__(self) -> None:
        if not self.at >= 1:
            raise UserError(f"Truncated(at=C) needs C >= 1, got {self.at}: below 1 it would scale down on-policy tokens, too")
        _check_by("Truncated", self.by)

    def __call__(self, gap: Tensor, entries: Entries) -> Corrected:
        """`gap` is log pi - log mu of each token."""
        weight = _weights(gap, entries, self.by)
        cut = weight.clamp(max=self.at)
        told = {"correction/mean": float(cut.mean()), "correction/truncated": float((weight > self.at).double().mean())}
        return Corrected(cut, None, told)


@dataclass(frozen=True, slots=True)
class Masked:
    """w where low <= w <= high; what lies outside is out of the loss and of its means: masked importance sampling.

    By token it is IcePop (Ling team 2025, which masks on both sides), by sequence MIS (Liu, Li et al. 2025, "When speed
    kills stability", which has no lower bound: low=0). Tokens that are out have no KL and no entropy term, either.
    """

    low: float = 0.5
    high: float = 2.0
    by: Literal["token", "sequence"] = "token"

    def __post_init__(self) -> None:
        if not 0 <= self.low <= 1 <= self.high:
            raise UserError(f"Masked needs 0 <= low <= 1 <= high, or on-policy tokens are out; got {self.low}, {self.high}")
        _check_by("Masked", self.by)

    def __call__(self, gap: Tensor, entries: Entries) -> Corrected:
        """`gap` is log pi - log mu of each token. `correction/mean` is of those that are kept."""
        weight = _weights(gap, entries, self.by)
        kept = (weight >= self.low) & (weight <= self.high)
        mean = float(weight[kept].mean()) if bool(kept.any()) else 0.0
        return Corrected(weight, kept, {"correction/mean": mean, "correction/masked": float((~kept).double().mean())})


def _weights(gap: Tensor, entries: Entries, by: str) -> Tensor:
    log_ratio = gap.detach()
    if by == "sequence":
        log_ratio = log_ratio.new_zeros(entries.num_rows).index_add(0, entries.row, log_ratio)[entries.row]
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def _check_by(name: str, by: str) -> None:
    if by not in ("token", "sequence"):
        raise UserError(f"{name}(by=...) is 'token' or 'sequence', got {by!r}")
