"""MGPO's reward: right or wrong at the end, and nothing on the way."""

from __future__ import annotations

from dataclasses import dataclass, replace

from agentrl.episode import FINISHED, Episode, Group, Reward


@dataclass(frozen=True, slots=True)
class BinaryAnswer:
    """1 for a finished episode whose team reward at the end is at least `correct`, else 0; all other rewards are taken away.

    Multi-turn Grounding-based Policy Optimization (arXiv 2507.05920) is this reward and GRPO over all turns that the model
    sampled: whether the box of an earlier turn was good is told by the answer alone. What it crops is the task's tool.
    """

    correct: float = 1.0

    def __call__(self, group: Group) -> Group:
        """The group with one reward, `answer`, for each finished member."""
        return replace(group, episodes=tuple(self._judged(episode) for episode in group.episodes))

    def _judged(self, episode: Episode) -> Episode:
        if episode.status not in FINISHED:
            return episode
        turns = tuple(replace(turn, rewards=()) if turn.rewards else turn for turn in episode.turns)
        return replace(episode, turns=turns, rewards=(Reward("answer", float(episode.reward >= self.correct)),))
