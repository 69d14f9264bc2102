"""Rollout plans: continue, branch, restart or stop; a plan owns the group size."""

from agentrl.rollout.backtrack import Backtrack
from agentrl.rollout.candidates import Candidates
from agentrl.rollout.contract import GroupRun, RolloutPlan
from agentrl.rollout.entropy import EntropyTree
from agentrl.rollout.independent import Independent
from agentrl.rollout.montecarlo import MonteCarlo
from agentrl.rollout.reference import Referenced
from agentrl.rollout.reset import DatasetReset
from agentrl.rollout.segments import FixedTree, SegmentTree
from agentrl.rollout.tree import RandomTree

PLANS: dict[str, type[RolloutPlan]] = {
    "backtrack": Backtrack,
    "candidates": Candidates,
    "dataset_reset": DatasetReset,
    "entropy_tree": EntropyTree,
    "fixed_tree": FixedTree,
    "independent": Independent,
    "monte_carlo": MonteCarlo,
    "random_tree": RandomTree,
    "segment_tree": SegmentTree,
    "referenced": Referenced,
}
"""By the short name that the command line uses."""

__all__ = [
    "PLANS",
    "Backtrack",
    "Candidates",
    "DatasetReset",
    "EntropyTree",
    "FixedTree",
    "GroupRun",
    "Independent",
    "MonteCarlo",
    "RandomTree",
    "Referenced",
    "RolloutPlan",
    "SegmentTree",
]
