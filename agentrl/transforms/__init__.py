"""What is the group's reward? Transforms change rewards before credit is computed; see `docs/credit.md`."""

from agentrl.transforms.adacot import AdaCoT
from agentrl.transforms.answer import BinaryAnswer
from agentrl.transforms.apply import transformed
from agentrl.transforms.contract import RewardTransform
from agentrl.transforms.otc import OTC
from agentrl.transforms.replay import Replay, Successes
from agentrl.transforms.rubrics import RubricVersions
from agentrl.transforms.similarity import CodeSimilarity, Cosine, TokenJaccard
from agentrl.transforms.stepsearch import StepSearch

TRANSFORMS: dict[str, type[RewardTransform]] = {
    "adacot": AdaCoT,
    "arpo_gui": Replay,
    "code_similarity": CodeSimilarity,
    "mgpo": BinaryAnswer,
    "otc": OTC,
    "rubric_versions": RubricVersions,
    "step_search": StepSearch,
}
"""By the short name that the command line and run folders use."""

__all__ = [
    "OTC",
    "TRANSFORMS",
    "AdaCoT",
    "BinaryAnswer",
    "CodeSimilarity",
    "Cosine",
    "Replay",
    "RewardTransform",
    "RubricVersions",
    "StepSearch",
    "Successes",
    "TokenJaccard",
    "transformed",
]
