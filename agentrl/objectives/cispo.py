"""CISPO: the importance weight is clipped, not the update, so no token loses its gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentrl.errors import UserError
from agentrl.objectives.clipped import Clipped

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class CISPO(Clipped):
    """mean of -sg(clip(rho, 1 - low, 1 + high)) A log pi (MiniMax-M1, arXiv 2506.13585, eq. 4-5); the rest as in `Clipped`.

    sg stops the gradient. `low=1` is no lower bound, as the authors have it; they tuned `high` and do not name it. The loss is
    not comparable with `Clipped`'s, its gradient is: on-policy both have that of -A log pi.
    """

    low: float = 1.0

    def __post_init__(self) -> None:
        Clipped.__post_init__(self)
        if self.dual is not None:
            raise UserError(f"CISPO has no dual clip, got dual={self.dual}; its weights are bounded by 1 + high already")

    def _losses(self, ratio: Tensor, logprobs: Tensor, advantage: Tensor) -> tuple[Tensor, Tensor]:
        weight = ratio.detach().clamp(1 - self.low, 1 + self.high)
        return -weight * advantage * logprobs, weight != ratio
