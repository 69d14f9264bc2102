"""Estimates of KL(pi || anchor) from the log-probs of drawn tokens, and which of them may be a loss.

With d = log anchor - log pi of one token drawn from pi (Schulman 2020, "Approximating KL divergence"):

    form    value           expected value        expected gradient as a loss, of a token drawn from pi
    k1      -d              KL(pi || anchor)      0: it pulls nowhere, it only adds noise
    k2      d^2 / 2         not quite the KL      that of KL(pi || anchor)
    k3      e^d - d - 1     KL(pi || anchor)      that of KL(anchor || pi), the other direction; near the anchor they agree

So k2 is the form to pull with, k3 what GRPO and verl's low_var_kl use, k1 one to look at. For tokens of an older policy none of
this is exact. The d of all forms is clamped to [-20, 20], k3 to at most 10, as in verl; what is clamped pulls no more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

Form: TypeAlias = Literal["k1", "k2", "k3"]

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped here (as verl does), so that one stale token cannot overflow the rest."""
MAX_KL = 10.0


def estimate(form: Form, logprobs: Tensor, anchor: Tensor) -> Tensor:
    """Of each token, with gradient."""
    d = (anchor - logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if form == "k1":
        return -d
    if form == "k2":
        return d.square() / 2
    return (d.exp() - d - 1).clamp(-MAX_KL, MAX_KL)


def to_go(values: Tensor, row: Tensor) -> Tensor:
    """Of each entry the sum over it and the later ones of its row."""
    order = row.argsort(stable=True)
    inside, rows = values[order], row[order]
    ends = values.new_zeros(int(row.max()) + 1).index_add(0, row, values).cumsum(0)
    result = values.new_empty(len(values))
    result[order] = ends[rows] - inside.cumsum(0) + inside
    return result
