"""The clipped policy gradient and its common variants: PPO, GRPO, DAPO, GSPO."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from agentrl.errors import UserError
from agentrl.objectives.contract import Entries
from agentrl.objectives.correction import MAX_LOG_RATIO, Masked, Truncated

if TYPE_CHECKING:
    from torch import Tensor

MAX_KL = 10.0


@dataclass(frozen=True, slots=True)
class Clipped:
    """mean of -min(rho A, clip(rho, 1 - low, 1 + high) A), rho = pi / pi_behaviour; plus kl KL, minus entropy H.

    PPO (Schulman et al. 2017, eq. 7); unequal bounds are DAPO's clip-higher (Yu et al. 2025). `dual` = c bounds the loss of a
    negative advantage by -c A (Ye et al. 2020; verl uses 3).

    `ratio`: "token", or e to the mean log-ratio over the tokens of a "turn" (Tree-GRPO's variant) or of a "sequence", that is
    a row (GSPO, Zheng et al. 2025, eq. 7), shared by its tokens. `aggregate`: "token" = weighted mean over all tokens (DAPO),
    "row" = mean over rows of the mean over their tokens (GRPO), "episode" = the same by episode. Weights are relative: each
    mean divides by their sum.

    KL is k3, e^d - d - 1 with d = log(reference / pi) (Schulman's estimator; verl's low_var_kl), against the recorded
    reference if the batch has one, else against the behaviour policy.

    `correction` takes the ratio against the learner's own policy before the update, pi_old, and weighs each token by what
    pi_old has drifted from the behaviour policy, without gradient (decoupled PPO; Hilton et al. 2022, AReaL). A batch has one
    update, so the ratio is 1 then, and nothing is clipped but those weights.
    """

    low: float = 0.2
    high: float = 0.28
    dual: float | None = None
    ratio: Literal["token", "turn", "sequence"] = "token"
    aggregate: Literal["token", "row", "episode"] = "token"
    kl: float = 0.0
    entropy: float = 0.0
    correction: Truncated | Masked | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.low <= 1 or self.high < 0:
            raise UserError(f"Clipped needs 0 <= low <= 1 and high >= 0, got low={self.low}, high={self.high}")
        if self.dual is not None and self.dual <= 1:
            raise UserError(f"Clipped(dual=c) needs c > 1, got {self.dual}; use None for no dual clip")
        if self.ratio not in ("token", "turn", "sequence"):
            raise UserError(f"Clipped(ratio=...) is 'token', 'turn' or 'sequence', got {self.ratio!r}")
        if self.aggregate not in ("token", "row", "episode"):
            raise UserError(f"Clipped(aggregate=...) is 'token', 'row' or 'episode', got {self.aggregate!r}")

    @property
    def needs_behaviour(self) -> bool:
        """True: the ratio is against the policy that drew the tokens."""
        return True

    @property
    def needs_entropy(self) -> bool:
        """Whether `Entries.entropy` must be there, with gradient."""
        return self.entropy != 0.0

    @property
    def idle_at_zero(self) -> bool:
        """Whether tokens of advantage 0 have no gradient; a learner may then save itself their backward pass."""
        return not self.kl and not self.entropy

    def __call__(self, entries: Entries) -> tuple[Tensor, Mapping[str, float]]:
        """The scalar to minimise, and metrics (see `docs/learning.md`)."""
        import torch

        logprobs = entries.logprobs
        advantage = entries.advantage.to(logprobs.dtype)
        gap = logprobs - entries.behaviour.to(logprobs.dtype)
        since = gap if self.correction is None else logprobs - logprobs.detach()
        log_ratio = self._shared(since, entries).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        ratio = log_ratio.exp()
        losses, clipped = self._losses(ratio, logprobs, advantage)
        corrected = None if self.correction is None else self.correction(gap, entries)
        if corrected is not None:
            losses = losses * corrected.weight
        anchor = entries.behaviour if entries.reference is None else entries.reference
        if self.kl:
            losses = losses + self.kl * k3(logprobs, anchor.to(logprobs.dtype))
        if self.entropy:
            if entries.entropy is None:
                raise UserError("Clipped(entropy=...) needs Entries.entropy, which this learner did not give; set entropy=0")
            losses = losses - self.entropy * entries.entropy
        with torch.no_grad():
            metrics = {
                "ratio/mean": float(ratio.mean()),
                "ratio/max": float(ratio.max()),
                "clip/fraction": float(clipped.double().mean()),
                "kl/k1": -float(gap.mean()),
                "kl/k3": float(k3(logprobs, entries.behaviour.to(logprobs.dtype)).mean()),
                "gap/mean": float(gap.abs().mean()),
                "gap/max": float(gap.abs().max()),
            }
            if entries.reference is not None:
                metrics["kl/reference"] = float(k3(logprobs, anchor.to(logprobs.dtype)).mean())
            if entries.entropy is not None:
                metrics["entropy"] = float(entries.entropy.mean())
            if corrected is not None:
                behind = self._shared(gap, entries).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
                metrics |= {"ratio/mean": float(behind.mean()), "ratio/max": float(behind.max()), **corrected.metrics}
        return self._mean(losses, entries, None if corrected is None else corrected.kept), metrics

    def _losses(self, ratio: Tensor, logprobs: Tensor, advantage: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of each token, and whether the clip changes it."""
        import torch

        plain, clipped = -ratio * advantage, -ratio.clamp(1 - self.low, 1 + self.high) * advantage
        losses = torch.maximum(plain, clipped)
        if self.dual is not None:
            losses = torch.where(advantage < 0, torch.minimum(losses, -self.dual * advantage), losses)
        return losses, clipped > plain

    def _shared(self, gap: Tensor, entries: Entries) -> Tensor:
        """The log-ratio of each token: its own, or the mean over its turn or row."""
        if self.ratio == "token":
            return gap
        unit = entries.turn if self.ratio == "turn" else entries.row
        return _group_means(gap, unit, None)[unit]

    def _mean(self, losses: Tensor, entries: Entries, kept: Tensor | None) -> Tensor:
        """Of the tokens that are `kept`; None = all. Where none is, the loss is 0."""
        weight = entries.weight.to(losses.dtype)
        trained = weight if kept is None else weight * kept
        if self.aggregate == "token":
            total, count = (trained * losses).sum(), trained.sum()
        else:
            unit = entries.row if self.aggregate == "row" else entries.episode
            means = _group_means(losses, unit, trained)
            # The weight of a unit is the mean weight of its tokens: for a row, its own.
            units = _group_means(weight, unit, None if kept is None else kept.to(weight.dtype))
            total, count = (units * means).sum(), units.sum()
        return total / (count if kept is None else _or_one(count))


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """e^d - d - 1 with d = reference - logprobs, clamped as in verl; unbiased for KL(pi || reference), never negative."""
    difference = (reference - logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return (difference.exp() - difference - 1).clamp(-MAX_KL, MAX_KL)


def _group_means(values: Tensor, unit: Tensor, weight: Tensor | None) -> Tensor:
    """(Weighted) mean of the values of each unit, by unit index; 0 for a unit without (weighted) values."""
    count = int(unit.max()) + 1 if len(unit) else 0
    factor = weight if weight is not None else values.new_ones(len(values))
    sums = values.new_zeros(count).index_add(0, unit, values * factor)
    totals = values.new_zeros(count).index_add(0, unit, factor)
    return sums / _or_one(totals)


def _or_one(totals: Tensor) -> Tensor:
    """The totals, 1 in the place of 0."""
    return totals.where(totals != 0, totals.new_ones(()))
