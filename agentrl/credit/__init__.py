"""Whose credit is it? Estimators turn a batch of groups into advantages; see `docs/credit.md`."""

from agentrl.credit.arpo import ARPO
from agentrl.credit.assign import assign
from agentrl.credit.batch import to_batch
from agentrl.credit.contract import Batch, Credit, Estimator, Needs, TurnColumns
from agentrl.credit.gigpo import GiGPO
from agentrl.credit.grpo import GRPO
from agentrl.credit.gtpo import GTPO
from agentrl.credit.spo import SPOTree
from agentrl.credit.statistics import combine, normalise, returns, totals
from agentrl.credit.tree import Forest
from agentrl.credit.treegrpo import TreeGRPO
from agentrl.credit.treepo import TreePO

ESTIMATORS: dict[str, type[Estimator]] = {
    "arpo_agentic": ARPO,
    "gigpo": GiGPO,
    "grpo": GRPO,
    "gtpo_turn": GTPO,
    "spo_tree": SPOTree,
    "tree_grpo": TreeGRPO,
    "treepo": TreePO,
}
"""By the short name that the command line and run folders use."""

__all__ = [
    "ARPO",
    "ESTIMATORS",
    "GRPO",
    "GTPO",
    "Batch",
    "Credit",
    "Estimator",
    "Forest",
    "GiGPO",
    "Needs",
    "SPOTree",
    "TreeGRPO",
    "TreePO",
    "TurnColumns",
    "assign",
    "combine",
    "normalise",
    "returns",
    "to_batch",
    "totals",
]
