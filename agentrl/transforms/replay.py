"""ARPO's replay: a group in which all failed gets a stored success of its task."""

from __future__ import annotations

import dataclasses
import json
import random
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from agentrl.episode import Episode, Group


class Successes:
    """The last `size` successes of each task, whole, in memory; the oldest gives way. What is given twice is kept once."""

    def __init__(self, size: int = 8) -> None:
        self.size = size
        self._by_task: defaultdict[str, deque[Episode]] = defaultdict(partial(deque[Episode], maxlen=size))

    def add(self, task: Any, episodes: Iterable[Episode]) -> None:
        """Keeps the episodes as successes of the task."""
        kept = self._by_task[_key(task)]
        for episode in episodes:
            if all(episode.id != other.id for other in kept):
                kept.append(episode)

    def of(self, task: Any) -> Sequence[Episode]:
        """Those of the task, the oldest first."""
        return tuple(self._by_task[_key(task)])

    def __repr__(self) -> str:
        return f"Successes(size={self.size})"


@dataclass(frozen=True, slots=True)
class Replay:
    """Puts a stored success in the first finished member's place where all failed; and keeps the group's own successes.

    Agentic Replay Policy Optimization, ARPO for GUI agents (arXiv 2505.16282): a group has failed if the deviation of its
    members' evaluations is below `std` and their mean below `mean`; an evaluation above `above` is a success. An evaluation
    is the team's reward at the end, or the part of it called `evaluation`: a format reward beside it then has no say, as in
    the authors' code. Give this transform first: later ones see the success as a member, and it is kept as it came.

    The authors put the success in with log-probs of the present policy. Here it keeps those it was sampled with, so that an
    objective's ratio and correction see how old it is. Which success is drawn follows from the group's id. `successes` is
    empty when a run begins or is resumed (steps that were committed are learned again as they were); fill it from a store
    with `add` where that matters.
    """

    std: float = 0.05
    mean: float = 0.2
    above: float = 0.1
    evaluation: str = ""
    successes: Successes = field(default_factory=Successes)

    def __call__(self, group: Group) -> Group:
        """The group, with a success in it if it has none and one is stored; the success has source "replay" and its own id."""
        stored = self.successes.of(group.task)
        ours = [episode for episode in group.finished if episode.source != "reference"]
        scores = [self._evaluated(episode) for episode in ours]
        replayed = group
        if scores and stored and np.std(scores) < self.std and np.mean(scores) < self.mean:
            success = replace(random.Random(group.id).choice(stored), source="replay")
            members = tuple(success if episode is ours[0] else episode for episode in group.episodes)
            replayed = replace(group, episodes=members)
        pairs = zip(ours, scores, strict=True)
        self.successes.add(group.task, (episode for episode, score in pairs if score > self.above))
        return replayed

    def _evaluated(self, episode: Episode) -> float:
        if not self.evaluation:
            return episode.reward
        return float(sum(reward.value for reward in episode.rewards if reward.agent is None and reward.name == self.evaluation))


def _key(task: Any) -> str:
    """Equal for tasks of equal content."""
    value = dataclasses.asdict(task) if dataclasses.is_dataclass(task) and not isinstance(task, type) else task
    return json.dumps(value, sort_keys=True, default=repr)
