"""A model that scores by a rubric: `verdict = await judge(team, "judge", rubric, work)` inside a workflow.

The judge is a role of the team, served by whatever policy it is given (a frozen one, or an endpoint). What it says are turns of
the episode, so a replay asks nobody; its score is a reward called `rubric@3`, which holds the version of the rubric, for scores
by different versions must not be compared (`agentrl.transforms.RubricVersions`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentrl.errors import RewardError, UserError

if TYPE_CHECKING:
    from agentrl.episode import Turn
    from agentrl.team import Team


@dataclass(frozen=True, slots=True)
class Rubric:
    """What is scored: each item with 0 to `best` points. A changed text is a new version."""

    items: Sequence[str]
    version: int
    name: str = "rubric"
    best: int = 10

    def __post_init__(self) -> None:
        if isinstance(self.items, str) or not self.items or not all(item.strip() for item in self.items):
            raise UserError(f"a rubric needs items, each a text, got {self.items!r:.80}; Rubric((TEXT, ...), version=1)")
        if self.best < 1 or not self.name or "@" in self.name:
            raise UserError(f"a rubric needs best >= 1 and a name without '@', got best={self.best}, name={self.name!r}")

    @property
    def reward(self) -> str:
        """Name of the reward that a score by this rubric is."""
        return f"{self.name}@{self.version}"

    def question(self, work: str) -> str:
        """What the judge is asked."""
        items = "\n".join(f"{number}. {item}" for number, item in enumerate(self.items, start=1))
        return (
            f"Score this work:\n\n{work}\n\nThe rubric:\n{items}\n\nFor each item give one sentence that says why, and then a "
            f"line `Score ITEM: POINTS`, for example `Score 1: {self.best // 2}`, with 0 to {self.best} points."
        )

    def read(self, said: str) -> tuple[float, ...]:
        """The points of each item in what a judge said. `ValueError` for an item without points, with several, or too many."""
        found: dict[int, float] = {}
        for item, points in ((int(item), float(points)) for item, points in _SCORE.findall(said)):
            if found.setdefault(item, points) != points:
                raise ValueError(f"item {item} has {found[item]:g} points and {points:g} points")
        if sorted(found) != list(range(1, len(self.items) + 1)):
            raise ValueError(f"wanted a line `Score ITEM: POINTS` for each of {len(self.items)} items, got {sorted(found)}")
        if not all(0 <= points <= self.best for points in found.values()):
            raise ValueError(f"wanted 0 to {self.best} points an item, got {[found[item] for item in sorted(found)]}")
        return tuple(found[item] for item in sorted(found))


_SCORE = re.compile(r"^[^\w\n]*score +(\d{1,4})[^\w\n]*?[:=][^\w\n]*?(-?\d+(?:\.\d+)?)", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge came to. `score` is the share of all points, between 0 and 1; `turn` is where it says why."""

    score: float
    points: tuple[float, ...]
    rubric: Rubric
    turn: Turn | None


async def judge(
    team: Team,
    role: str,
    rubric: Rubric,
    work: str,
    *,
    turn: Turn | None = None,
    agent: str | None = None,
    tries: int = 2,
    unreadable: float | None = None,
) -> Verdict:
    """Asks the role `role` of the team to score `work`, and gives the score as a reward: at the end, or to `turn` or `agent`.

    A verdict that cannot be read is asked for again, `tries` times in all. Then the episode fails by the reward's fault, and is
    in no statistic; with `unreadable` (0.0 is MPO's) that is the score instead, of no points, and the metric `judge/unreadable`
    says so. A judge whose engine fails raises `EngineError`: the episode fails by the engine's fault.
    """
    if tries < 1 or not (unreadable is None or 0 <= unreadable <= 1):
        raise UserError(f"judge needs tries >= 1 and unreadable between 0 and 1 or None, got {tries=}, {unreadable=}")
    question, wrong = rubric.question(work), ""
    for _ in range(tries):
        reply = await team[role].run(question)
        try:
            points = rubric.read(reply.text)
        except ValueError as error:
            wrong = f"{error}; it stopped for {reply.stop} and said {reply.text[-160:]!r}"
            continue
        verdict = Verdict(sum(points) / (rubric.best * len(points)), points, rubric, reply.turn)
        team.reward(verdict.score, name=rubric.reward, turn=turn, agent=agent)
        team.metric("judge/unreadable", 0.0)
        return verdict
    if unreadable is None:
        raise RewardError(
            f"agent {role} gave no verdict by {rubric.reward} that can be read in {tries} tries: {wrong}; give it more "
            "max_tokens or a clearer system prompt, or judge(..., unreadable=0.0)"
        )
    team.reward(unreadable, name=rubric.reward, turn=turn, agent=agent)
    team.metric("judge/unreadable", 1.0)
    return Verdict(unreadable, (), rubric, None)
