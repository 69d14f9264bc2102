"""AdaCoT's penalties: for thinking too little, for thinking needlessly, for a broken format."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from agentrl.episode import FINISHED, Episode, Group, Reward
from agentrl.errors import UserError
from agentrl.transforms.tasks import of_task


@dataclass(frozen=True, slots=True)
class AdaCoT:
    """R = R_base - missed [should think, did not] - needless [did, should not] - broken [format broken] (arXiv 2505.11896).

    Whether a task needs thought is its field or key `label`, true or false; without one neither of the first two applies. An
    episode thought if a turn's text has anything but white space before the closing of `tags`; an empty pair is no thought,
    and a thought that was not closed is one. Its format is broken if a turn is not `valid`. The sum is the reward `adacot`.

    The weights walk along the paper's Pareto front; its settings are not public, and the defaults are no recommendation.
    """

    missed: float = 0.1
    needless: float = 0.3
    broken: float = 1.0
    label: str = "needs_thought"
    tags: tuple[str, str] = ("<think>", "</think>")

    def __call__(self, group: Group) -> Group:
        """The group with its finished members' penalties. `UserError` for a label that is neither true, false nor None."""
        needed: Any = of_task(group.task, self.label)
        if needed is not None and not isinstance(needed, bool):
            raise UserError(f"the task's {self.label} is {needed!r:.60}; say whether it needs thought with true or false")
        return replace(group, episodes=tuple(self._judged(episode, needed) for episode in group.episodes))

    def _judged(self, episode: Episode, needed: bool | None) -> Episode:
        if episode.status not in FINISHED:
            return episode
        thought = any(self._thinks(turn.text) for turn in episode.turns)
        penalty = 0.0 if all(turn.valid for turn in episode.turns) else self.broken
        if needed is not None and thought != needed:
            penalty += self.missed if needed else self.needless
        return replace(episode, rewards=(*episode.rewards, Reward("adacot", -penalty))) if penalty else episode

    def _thinks(self, text: str) -> bool:
        opening, closing = self.tags
        head, closed, _ = text.partition(closing)
        # a template may open the thought itself: then the text begins inside it
        return bool((opening in text or closed) and head.rpartition(opening)[2].strip())
