"""The clipped policy gradient and its common variants: PPO, GRPO, DAPO, GSPO."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from agentrl.errors import UserError
from agentrl.objectives.aggregate import Aggregate, aggregated, unit_means
from agentrl.objectives.contract import Entries
from agentrl.objectives.correction import Masked, Truncated
from agentrl.objectives.divergence import MAX_LOG_RATIO, estimate, to_go

if TYPE_CHECKING:
    from torch import Tensor

Ratio: TypeAlias = Literal["token", "turn", "sequence"]
Penalty: TypeAlias = Literal["k1", "k2", "k3", "reward"]
Anchor: TypeAlias = Literal["reference", "behaviour"]


@dataclass(frozen=True, slots=True)
class Clipped:
    """mean of -min(rho A, clip(rho, 1 - low, 1 + high) A), rho = pi / pi_behaviour; plus kl KL, nll NLL, minus entropy H.

    PPO (Schulman et al. 2017, eq. 7); unequal bounds are DAPO's clip-higher (Yu et al. 2025). `dual` = c bounds the loss of a
    negative advantage by -c A (Ye et al. 2020; verl uses 3).

    `ratio`: "token", or e to the mean log-ratio over the trained tokens of a "turn" (Tree-GRPO's variant) or of a "sequence",
    that is a row (GSPO, Zheng et al. 2025, eq. 7). The value is shared, the gradient is each token's own (GSPO-token, eq. 14):
    the same as GSPO where the unit has one advantage, and turns of one row keep theirs where they differ.

    `aggregate` and `length` are those of `agentrl.objectives.aggregate`: "token" (DAPO), "row" (GRPO), "episode"; with a
    `length` sums over a constant (Dr. GRPO: "row", the longest reply allowed).

    `kl` weighs the estimate `kl_form` of KL(pi || anchor) (`agentrl.objectives.divergence` says which to take) against a
    frozen "reference" policy or, `kl_to="behaviour"`, the one that drew the tokens. `kl_form="reward"` has no such term: the
    advantage loses kl times the sum of log behaviour - log reference over its token and the later ones of the row (PPO's and
    REINFORCE++'s penalty in the reward, undiscounted, after whatever the estimator has normalised).

    `nll` weighs the mean of -log pi over the tokens of positive advantage (VAPO; THOR, which takes 0.01).

    `correction` takes the ratio against the learner's own policy before the update, pi_old, and weighs each token by what
    pi_old has drifted from the behaviour policy, without gradient (decoupled PPO; Hilton et al. 2022, AReaL). A batch has one
    update, so the ratio is 1 then, and nothing is clipped but those weights.
    """

    low: float = 0.2
    high: float = 0.28
    dual: float | None = None
    ratio: Ratio = "token"
    aggregate: Aggregate = "token"
    length: float | None = None
    kl: float = 0.0
    kl_form: Penalty = "k3"
    kl_to: Anchor = "reference"
    entropy: float = 0.0
    nll: float = 0.0
    correction: Truncated | Masked | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.low <= 1 or self.high < 0:
            raise UserError(f"Clipped needs 0 <= low <= 1 and high >= 0, got low={self.low}, high={self.high}")
        if self.dual is not None and self.dual <= 1:
            raise UserError(f"Clipped(dual=c) needs c > 1, got {self.dual}; use None for no dual clip")
        if self.length is not None and not self.length > 0:
            raise UserError(f"Clipped(length=...) needs a number above 0, got {self.length}; use None for means")
        if self.kl < 0 or self.nll < 0:
            raise UserError(f"Clipped needs kl >= 0 and nll >= 0, got kl={self.kl}, nll={self.nll}")
        for name, choice in (("ratio", Ratio), ("aggregate", Aggregate), ("kl_form", Penalty), ("kl_to", Anchor)):
            if getattr(self, name) not in get_args(choice):
                allowed = ", ".join(map(repr, get_args(choice)))
                raise UserError(f"Clipped({name}=...) is one of {allowed}, got {getattr(self, name)!r}")
        if self.kl and self.kl_form == "reward" and self.kl_to == "behaviour":
            raise UserError('Clipped(kl_form="reward") is 0 against the behaviour policy itself; take kl_to="reference"')

    @property
    def needs_behaviour(self) -> bool:
        """True: the ratio is against the policy that drew the tokens."""
        return True

    @property
    def needs_reference(self) -> bool:
        """Whether `Entries.reference` must be there."""
        return self.kl != 0.0 and self.kl_to == "reference"

    @property
    def needs_entropy(self) -> bool:
        """Whether `Entries.entropy` must be there, with gradient."""
        return self.entropy != 0.0

    @property
    def idle_at_zero(self) -> bool:
        """Whether tokens of advantage 0 have no gradient; a learner may then save itself their backward pass."""
        return not self.kl and not self.entropy

    def __call__(self, entries: Entries) -> tuple[Tensor, Mapping[str, float]]:
        """The scalar to minimise, and metrics (see `docs/objectives.md`)."""
        logprobs = entries.logprobs
        advantage = entries.advantage.to(logprobs.dtype)
        anchor = self._anchor(entries)
        if anchor is not None and self.kl_form == "reward":
            advantage = advantage - self.kl * to_go(entries.behaviour.to(logprobs.dtype) - anchor, entries.row)
        gap = logprobs - entries.behaviour.to(logprobs.dtype)
        since = gap if self.correction is None else logprobs - logprobs.detach()
        ratio = self._shared(since, entries).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        losses, clipped = self._losses(ratio, logprobs, advantage)
        metrics = self._metrics(entries, gap, ratio, clipped)
        kept = None
        if self.correction is not None:
            corrected = self.correction(gap, entries)
            losses, kept = losses * corrected.weight, corrected.kept
            behind = self._shared(gap.detach(), entries).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
            metrics |= {"ratio/mean": float(behind.mean()), "ratio/max": float(behind.max()), **corrected.metrics}
        if anchor is not None and self.kl_form != "reward":
            losses = losses + self.kl * estimate(self.kl_form, logprobs, anchor)
        if self.entropy:
            if entries.entropy is None:
                raise UserError("Clipped(entropy=...) needs Entries.entropy, which this learner did not give; set entropy=0")
            losses = losses - self.entropy * entries.entropy
        loss = aggregated(losses, entries, self.aggregate, length=self.length, kept=kept)
        if self.nll:
            positive = advantage > 0 if kept is None else kept & (advantage > 0)
            imitation = aggregated(-logprobs, entries, self.aggregate, length=self.length, kept=positive)
            loss = loss + self.nll * imitation
            metrics["nll/positive"] = float(imitation.detach())
        return loss, metrics

    def _anchor(self, entries: Entries) -> Tensor | None:
        """What KL is against, if there is such a term."""
        if not self.kl:
            return None
        anchor = entries.behaviour if self.kl_to == "behaviour" else entries.reference
        if anchor is None:
            raise UserError(
                "Clipped(kl=...) is against a reference policy and there is none; give the experiment (or LocalLearner) a "
                'reference, or take kl_to="behaviour"'
            )
        return anchor.to(entries.logprobs.dtype)

    def _losses(self, ratio: Tensor, logprobs: Tensor, advantage: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of each token, and whether the clip changes it."""
        import torch

        plain, clipped = -ratio * advantage, -ratio.clamp(1 - self.low, 1 + self.high) * advantage
        losses = torch.maximum(plain, clipped)
        if self.dual is not None:
            losses = torch.where(advantage < 0, torch.minimum(losses, -self.dual * advantage), losses)
        return losses, clipped > plain

    def _shared(self, gap: Tensor, entries: Entries) -> Tensor:
        """The log-ratio of each token: its own, or the mean over its turn or row with the gradient of its own."""
        if self.ratio == "token":
            return gap
        unit = entries.turn if self.ratio == "turn" else entries.row
        return unit_means(gap.detach(), unit)[unit] + (gap - gap.detach())

    def _metrics(self, entries: Entries, gap: Tensor, ratio: Tensor, clipped: Tensor) -> dict[str, float]:
        logprobs, gap, ratio = entries.logprobs.detach(), gap.detach(), ratio.detach()
        metrics = {
            "ratio/mean": float(ratio.mean()),
            "ratio/max": float(ratio.max()),
            "clip/fraction": float(clipped.double().mean()),
            "kl/k1": -float(gap.mean()),
            "kl/k3": float(estimate("k3", logprobs, entries.behaviour.to(logprobs.dtype)).mean()),
            "gap/mean": float(gap.abs().mean()),
            "gap/max": float(gap.abs().max()),
        }
        if entries.reference is not None:
            metrics["kl/reference"] = float(estimate("k3", logprobs, entries.reference.to(logprobs.dtype)).mean())
        if entries.entropy is not None:
            metrics["entropy"] = float(entries.entropy.detach().mean())
        return metrics
