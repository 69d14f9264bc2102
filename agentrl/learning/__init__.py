"""Rows in, new weights out; see `docs/learning.md`.

Importing this package does not import torch; `agentrl.learning.local`, which holds `LocalLearner`, does.
"""

from agentrl.learning.contract import Learner, Row, StepStats, TrainedTurn
from agentrl.learning.critic import Critic
from agentrl.learning.optimisers import AdamW, Muon, Optimiser
from agentrl.learning.replay import from_stored, relearn, to_stored
from agentrl.learning.rows import to_rows
from agentrl.learning.schedules import Constant, Cosine, Linear, Schedule

__all__ = [
    "AdamW",
    "Constant",
    "Cosine",
    "Critic",
    "Learner",
    "Linear",
    "Muon",
    "Optimiser",
    "Row",
    "Schedule",
    "StepStats",
    "TrainedTurn",
    "from_stored",
    "relearn",
    "to_rows",
    "to_stored",
]
