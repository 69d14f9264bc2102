"""Log-probs and credit to a scalar; see `docs/objectives.md`. Importing this package does not import torch."""

from collections.abc import Mapping

from agentrl.objectives.cispo import CISPO
from agentrl.objectives.clipped import Clipped
from agentrl.objectives.contract import Entries, Objective
from agentrl.objectives.correction import Masked, Truncated
from agentrl.objectives.nll import NLL

OBJECTIVES: Mapping[str, Objective] = {
    "cispo": CISPO(),
    "clipped": Clipped(),
    "dapo": Clipped(low=0.2, high=0.28),
    "grpo": Clipped(low=0.2, high=0.2, aggregate="row", kl=0.04),
    "gspo": Clipped(low=3e-4, high=4e-4, ratio="sequence", aggregate="row"),
    "nll": NLL(),
    "ppo": Clipped(low=0.2, high=0.2),
    "thor": Clipped(low=0.2, high=0.28, dual=3.0, nll=0.01),
}
"""With the published numbers, by the short name that the command line takes; `docs/objectives.md` has the sources."""

__all__ = ["CISPO", "NLL", "OBJECTIVES", "Clipped", "Entries", "Masked", "Objective", "Truncated"]
