"""Partial credit for failed rollouts, by how alike their code is to that of the group's correct ones (GTPO's shaping)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from agentrl.episode import FINISHED, Episode, Group, Reward


@dataclass(frozen=True, slots=True)
class TokenJaccard:
    """|A and B| / |A or B| of the sets of words and signs of two texts."""

    def __call__(self, a: str, b: str) -> float:
        one, other = set(_TOKEN.findall(a)), set(_TOKEN.findall(b))
        return len(one & other) / len(one | other) if one or other else 0.0


_TOKEN = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Cosine:
    """The cosine of two texts' embeddings; `embed` is asked for each text of each pair, so give one that remembers."""

    embed: Callable[[str], Sequence[float]]

    def __call__(self, a: str, b: str) -> float:
        one, other = self.embed(a), self.embed(b)
        length = math.hypot(*one) * math.hypot(*other)
        return math.fsum(x * y for x, y in zip(one, other, strict=True)) / length if length else 0.0


@dataclass(frozen=True, slots=True)
class CodeSimilarity:
    """A wrong rollout is given alpha / |P| times the sum of its code's similarity to that of each correct one of its group.

    GTPO's shaping (arXiv 2511.14846). P are the finished members with `Episode.reward` >= `correct`; without any, nothing is
    given. A rollout's code is what the tool calls of all its turns were given: all arguments, or only those of `tool` and the
    one called `argument`. A rollout without code is like no other. Similarities below 0 count as 0. The paper has embeddings:
    `similarity=Cosine(embed)`. The reward is added under the name `code_similarity`.
    """

    alpha: float = 0.5
    similarity: Callable[[str, str], float] = field(default_factory=TokenJaccard)
    correct: float = 1.0
    tool: str | None = None
    argument: str | None = None

    def __call__(self, group: Group) -> Group:
        """The group with partial credit for its wrong rollouts."""
        right = [self.code(episode) for episode in group.finished if episode.reward >= self.correct]
        if not right:
            return group
        return replace(group, episodes=tuple(self._shaped(episode, right) for episode in group.episodes))

    def code(self, episode: Episode) -> str:
        """What the episode's tool calls were given, a value a line, in the order of turns."""
        return "\n".join(
            _text(value)
            for turn in episode.turns
            for call in turn.tool_calls
            if self.tool is None or call.name == self.tool
            for name, value in call.arguments.items()
            if self.argument is None or name == self.argument
        )

    def _shaped(self, episode: Episode, right: Sequence[str]) -> Episode:
        if episode.status not in FINISHED or episode.reward >= self.correct or not (code := self.code(episode)):
            return episode
        alike = [max(float(self.similarity(code, other)), 0.0) if other else 0.0 for other in right]
        given = Reward("code_similarity", self.alpha / len(right) * math.fsum(alike))
        return replace(episode, rewards=(*episode.rewards, given))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
