"""Low-rank adaptation as a value. Importing this module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass

from agentrl.errors import UserError


@dataclass(frozen=True, slots=True)
class LoRA:
    """W + (alpha / rank) B A in the place of W, of which only A and B learn (Hu et al. 2021, arXiv 2106.09685).

    `targets` are the last parts of the names of the matrices that are adapted ("q_proj"); empty = all but the embedding and
    the output.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"LoRA(rank=...) must be at least 1, got {self.rank}; leave lora out to train all weights")
        if not self.alpha > 0:
            raise UserError(f"LoRA(alpha=...) must be above 0, got {self.alpha}")

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / self.rank
