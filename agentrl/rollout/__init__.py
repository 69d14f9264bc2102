"""Rollout plans: continue, branch, restart or stop; a plan owns the group size."""

from agentrl.rollout.contract import GroupRun, RolloutPlan
from agentrl.rollout.independent import Independent

__all__ = ["GroupRun", "Independent", "RolloutPlan"]
