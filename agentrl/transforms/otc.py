"""OTC: a right answer is worth more the fewer tool calls it took."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from agentrl.episode import FINISHED, Episode, Group
from agentrl.errors import UserError


@dataclass(frozen=True, slots=True)
class OTC:
    """r = alpha r_tool r_answer (OTC-PO, arXiv 2504.14870): every team reward at the end that is above 0 is multiplied.

    m are the episode's tool calls (failed ones cost, too). `against="group"` (OTC-GRPO): n is the fewest calls of a correct
    member of the group, and r_tool = `efficiency(m, n, c)`; without a correct member nothing is changed. `against="limit"`
    (OTC-PPO): n = 0 for all, r_tool = cos(m pi / (2m + c)). c is the most calls that the setting allows, correct is a reward
    of at least `correct`.

    The paper keeps the smallest n of a question over epochs; a transform remembers nothing, so n is the group's own, and a
    group whose best was wasteful pays full reward for as much waste. A reward that is not positive stays: thrift earns
    nothing by itself, and pardons nothing.
    """

    alpha: float = 1.0
    c: int = 4
    against: Literal["group", "limit"] = "group"
    correct: float = 1.0

    def __post_init__(self) -> None:
        if self.c < 1:
            raise UserError(f"OTC needs c >= 1, the most tool calls of the setting, got {self.c}")

    def __call__(self, group: Group) -> Group:
        """The group with the rewards of its finished members scaled."""
        right = [_calls(episode) for episode in group.finished if episode.reward >= self.correct]
        if self.against == "group" and not right:
            return group
        fewest = min(right) if self.against == "group" else 0
        return replace(group, episodes=tuple(self._scaled(episode, fewest) for episode in group.episodes))

    def _scaled(self, episode: Episode, fewest: int) -> Episode:
        if episode.status not in FINISHED:
            return episode
        factor = self.alpha * efficiency(_calls(episode), fewest, self.c)
        rewards = (
            replace(reward, value=reward.value * factor) if reward.agent is None and reward.value > 0 else reward
            for reward in episode.rewards
        )
        return replace(episode, rewards=tuple(rewards))


def efficiency(m: int, n: int, c: int) -> float:
    """r_tool of m calls where n are enough: 1 at m = n, less on both sides; cos(m pi / (2m + c)) if n = 0."""
    if n == 0:
        return math.cos(m * math.pi / (2 * m + c))
    return math.sin(2 * n * m / (m + n) * math.pi / (2 * n))


def _calls(episode: Episode) -> int:
    return sum(len(turn.tool_calls) for turn in episode.turns)
