"""Log-probs and credit to a scalar; see `docs/learning.md`. Importing this package does not import torch."""

from agentrl.objectives.cispo import CISPO
from agentrl.objectives.clipped import Clipped
from agentrl.objectives.contract import Entries, Objective
from agentrl.objectives.correction import Masked, Truncated
from agentrl.objectives.nll import NLL

OBJECTIVES: dict[str, type[Clipped] | type[NLL]] = {"cispo": CISPO, "clipped": Clipped, "nll": NLL}
"""By the short name that the command line and run folders use."""

__all__ = ["CISPO", "NLL", "OBJECTIVES", "Clipped", "Entries", "Masked", "Objective", "Truncated"]
