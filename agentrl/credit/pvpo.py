"""PVPO: an episode's reward against what a frozen reference policy earned on the task."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np

from agentrl.credit.contract import Batch, Credit, Needs
from agentrl.credit.statistics import totals
from agentrl.episode import Group
from agentrl.errors import UserError
from agentrl.transforms.tasks import of_task

REFERENCE_REWARDS = "reference_rewards"


@dataclass(frozen=True, slots=True)
class PVPO:
    """A_i = R_i - V, V = the mean reward of the reference policy's rollouts on the task; no deviation (arXiv 2508.21104).

    The reference's rewards are those of the group's finished members with `source == "reference"`, or, if it has none, the
    task's own `reference_rewards` (a field or a key that holds numbers, made before training). Members from the reference are
    the baseline and nothing else: they are not trained. A group that fails as a whole gets -V, and an episode alone gets R -
    V, where group methods give 0; lost members change nothing.

    The authors released no code. Their reward (F1 or cover exact match, at least 0.1 for the right format), the choice of
    tasks by the reference's accuracy and the demonstrations put into hopeless groups are not in this estimator; a
    demonstration that is in the group is credited like any other episode. V is refreshed by recording new reference rewards.
    """

    needs: ClassVar[Needs] = Needs(reference_rewards=True)

    def __call__(self, batch: Batch) -> Credit:
        """The advantage of each turn. `UserError` names a group without reference rewards."""
        turns = batch.turns
        value = np.zeros(len(batch.groups))
        for number in np.unique(turns.group).tolist():
            value[number] = _static_value(batch.groups[number])
        ours = np.array([episode.source != "reference" for episode in batch.episodes], np.bool_)[turns.episode]
        advantage = np.where(ours, totals(turns) - value[turns.group], 0.0)
        return Credit(turns, advantage, weight=ours.astype(np.float64))


def _static_value(group: Group) -> float:
    """The mean of the reference's rewards."""
    rewards = [
        math.fsum(reward.value for part in (episode, *episode.turns) for reward in part.rewards)
        for episode in group.finished
        if episode.source == "reference"
    ]
    if not rewards:
        rewards = _numbers(group)
    return math.fsum(rewards) / len(rewards)


def _numbers(group: Group) -> list[float]:
    """The task's reference rewards."""
    found: Any = of_task(group.task, REFERENCE_REWARDS)
    numbers = list(cast("list[Any]", found)) if isinstance(found, list | tuple) else []
    if not numbers or not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
        raise UserError(
            f"PVPO: group {group.id} has no finished episode of source 'reference', and its task's {REFERENCE_REWARDS} "
            f"is {found!r:.80}; put the rewards of a few rollouts of the reference policy there, a list of finite "
            "numbers, or take grpo"
        )
    return [float(number) for number in numbers]
