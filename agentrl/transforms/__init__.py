"""What is the group's reward? Transforms change rewards before credit is computed; see `docs/credit.md`."""

from agentrl.transforms.apply import transformed
from agentrl.transforms.contract import RewardTransform
from agentrl.transforms.similarity import CodeSimilarity, Cosine, TokenJaccard

TRANSFORMS: dict[str, type[RewardTransform]] = {"code_similarity": CodeSimilarity}
"""By the short name that the command line and run folders use."""

__all__ = ["TRANSFORMS", "CodeSimilarity", "Cosine", "RewardTransform", "TokenJaccard", "transformed"]
