"""MPO's rubrics: scores by different versions of a rubric are never compared."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Literal

from agentrl.episode import FINISHED, Episode, Group, Reward
from agentrl.errors import UserError


@dataclass(frozen=True, slots=True)
class RubricVersions:
    """Keeps a group's scores by several rubric versions apart (Meta Policy Optimization, arXiv 2504.20157).

    A score says its version in its name: `rubric@3`. Of a group with one version nothing is changed. Where there are several
    (the rubric was rewritten while the group ran), `mixed="split"` gives each episode minus the mean score of those judged by
    its own version, under the name `rubric_baseline`: its score then says only how it stands among them, and alone in its
    version it says nothing. A following estimator that divides by the deviation takes that of the whole group. "refuse" stops
    the step.

    Episodes without a score are a version of their own. When a rubric is rewritten is the judge's matter, not this one's.
    """

    name: str = "rubric"
    mixed: Literal["split", "refuse"] = "split"

    def __call__(self, group: Group) -> Group:
        """The group with its versions apart. `UserError` for several versions if they are to be refused."""
        scores: defaultdict[tuple[str, ...], list[float]] = defaultdict(list)
        for episode in group.finished:
            scores[self._versions(episode)].append(self._score(episode))
        if len(scores) < 2:
            return group
        if self.mixed == "refuse":
            told = ", ".join(sorted("+".join(versions) or "no rubric" for versions in scores))
            raise UserError(
                f"its scores are of several rubric versions ({told}), which must not be compared; "
                "judge the group again with one version, or split it (mixed=split)"
            )
        means = {versions: math.fsum(values) / len(values) for versions, values in scores.items()}
        return replace(group, episodes=tuple(self._centred(episode, means) for episode in group.episodes))

    def _centred(self, episode: Episode, means: dict[tuple[str, ...], float]) -> Episode:
        if episode.status not in FINISHED:
            return episode
        mean = means[self._versions(episode)]
        return replace(episode, rewards=(*episode.rewards, Reward("rubric_baseline", -mean)))

    def _scores(self, episode: Episode) -> list[Reward]:
        return [reward for reward in episode.rewards if reward.agent is None and reward.name.startswith(f"{self.name}@")]

    def _versions(self, episode: Episode) -> tuple[str, ...]:
        return tuple(sorted({reward.name for reward in self._scores(episode)}))

    def _score(self, episode: Episode) -> float:
        return math.fsum(reward.value for reward in self._scores(episode))
