"""NLL: supervised learning on recorded tokens, such as demonstrations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentrl.objectives.contract import Entries

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class NLL:
    """-sum(w log p) / sum(w) over the trained tokens; w is the row's weight. Advantages and behaviour are not looked at."""

    @property
    def needs_behaviour(self) -> bool:
        """False: nothing is compared with the policy that wrote the tokens."""
        return False

    def __call__(self, entries: Entries) -> tuple[Tensor, Mapping[str, float]]:
        """The scalar to minimise, and its unweighted mean as `nll`."""
        logprobs = entries.logprobs
        weight = entries.weight.to(logprobs.dtype)
        loss = -(weight * logprobs).sum() / weight.sum()
        return loss, {"nll": -float(logprobs.detach().mean())}
