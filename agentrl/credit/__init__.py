"""Whose credit is it? Estimators turn a batch of groups into advantages; see `docs/credit.md`."""

from agentrl.credit.assign import assign
from agentrl.credit.batch import to_batch
from agentrl.credit.contract import Batch, Credit, Estimator, Needs, TurnColumns
from agentrl.credit.gigpo import GiGPO
from agentrl.credit.grpo import GRPO
from agentrl.credit.gtpo import GTPO
from agentrl.credit.statistics import combine, normalise, returns, totals

ESTIMATORS: dict[str, type[Estimator]] = {"gigpo": GiGPO, "grpo": GRPO, "gtpo_turn": GTPO}
"""By the short name that the command line and run folders use."""

__all__ = [
    "ESTIMATORS",
    "GRPO",
    "GTPO",
    "Batch",
    "Credit",
    "Estimator",
    "GiGPO",
    "Needs",
    "TurnColumns",
    "assign",
    "combine",
    "normalise",
    "returns",
    "to_batch",
    "totals",
]
