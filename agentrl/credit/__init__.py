"""Whose credit is it? Estimators turn a batch of groups into advantages; see `docs/credit.md`."""

from agentrl.credit.adacot import DecisionMasked
from agentrl.credit.arpo import ARPO
from agentrl.credit.assign import assign
from agentrl.credit.atgrpo import ATGRPO
from agentrl.credit.batch import to_batch
from agentrl.credit.contract import Batch, Credit, Estimator, Needs, TurnColumns
from agentrl.credit.gae import GAE
from agentrl.credit.gigpo import GiGPO
from agentrl.credit.grpo import GRPO, DrGRPO
from agentrl.credit.gtpo import GTPO
from agentrl.credit.igpo import IGPO
from agentrl.credit.mashost import MasHostHRPO
from agentrl.credit.passk import PassAtK
from agentrl.credit.pvpo import PVPO
from agentrl.credit.reinforce import ReinforcePP
from agentrl.credit.rloo import RLOO
from agentrl.credit.salt import SALT
from agentrl.credit.spo import SPOChain, SPOTree
from agentrl.credit.statistics import combine, normalise, returns, sizes, totals
from agentrl.credit.supo import SUPO
from agentrl.credit.thor import THOR
from agentrl.credit.tree import Forest
from agentrl.credit.treegrpo import TreeGRPO
from agentrl.credit.treeopo import TreeOPO
from agentrl.credit.treepo import TreePO

ESTIMATORS: dict[str, type[Estimator]] = {
    "adacot_masked": DecisionMasked,
    "arpo_agentic": ARPO,
    "at_grpo": ATGRPO,
    "dr_grpo": DrGRPO,
    "gae": GAE,
    "gigpo": GiGPO,
    "grpo": GRPO,
    "gtpo_turn": GTPO,
    "hrpo_mashost": MasHostHRPO,
    "igpo": IGPO,
    "passk": PassAtK,
    "pvpo": PVPO,
    "reinforce_pp": ReinforcePP,
    "rloo": RLOO,
    "salt": SALT,
    "spo_chain": SPOChain,
    "spo_tree": SPOTree,
    "supo": SUPO,
    "thor": THOR,
    "tree_grpo": TreeGRPO,
    "tree_opo": TreeOPO,
    "treepo": TreePO,
}
"""By the short name that the command line and run folders use."""

__all__ = [
    "ARPO",
    "ATGRPO",
    "ESTIMATORS",
    "GAE",
    "GRPO",
    "GTPO",
    "IGPO",
    "PVPO",
    "RLOO",
    "SALT",
    "SUPO",
    "THOR",
    "Batch",
    "Credit",
    "DecisionMasked",
    "DrGRPO",
    "Estimator",
    "Forest",
    "GiGPO",
    "MasHostHRPO",
    "Needs",
    "PassAtK",
    "ReinforcePP",
    "SPOChain",
    "SPOTree",
    "TreeGRPO",
    "TreeOPO",
    "TreePO",
    "TurnColumns",
    "assign",
    "combine",
    "normalise",
    "returns",
    "sizes",
    "to_batch",
    "totals",
]
