"""What an estimator is: a batch in, credit per (row, token) out.

Estimators see the batch as columns over its turns, with failed episodes already out. Legend: T turns of the batch that may
be trained, in order of group, episode, turn; E episodes; G groups. Statistics are computed in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

import numpy as np

from agentrl.episode import Episode, Group, Turn

if TYPE_CHECKING:
    import numpy.typing as npt

Floats: TypeAlias = "npt.NDArray[np.float64]"
Ints: TypeAlias = "npt.NDArray[np.int64]"
Bools: TypeAlias = "npt.NDArray[np.bool_]"


@dataclass(frozen=True, slots=True)
class Needs:
    """What an estimator wants recorded. A run that lacks it is refused before the first token."""

    state: bool = False
    """Canonical state keys on turns."""
    entropy: bool = False
    probes: tuple[str, ...] = ()
    reference_rewards: bool = False
    forks: bool = False
    """Episodes of a group that share turns: a rollout plan that forks."""
    stopped: bool = False
    """Whether episodes that a rollout plan stopped before their end mean something to it; else such a plan is refused."""
    group: int = 1
    """Least size of a group for which the method means anything."""


@dataclass(frozen=True, slots=True)
class TurnColumns:
    """The trained turns of a batch, as columns of length T."""

    turn: tuple[Turn, ...]
    episode: Ints
    """Index of the turn's episode in the batch."""
    group: Ints
    agent: Ints
    """Index of the agent's name in `Batch.agents`."""
    index: Ints
    """Turn index of that agent."""
    state: Ints
    """Index of the canonical state key before the turn; -1 - t where it has none (so that it equals no other)."""
    action: Ints
    """The same of the canonical key of what the turn did."""
    after: Ints
    """The same of the canonical state key behind it; a state has one index in both columns."""
    reward: Floats
    """Rewards of this turn (its own and, on an agent's last turn, that agent's end rewards)."""
    outcome: Floats
    """The episode's team reward at its end; the same on every turn of an episode."""
    last: npt.NDArray[np.bool_]
    """Whether the turn is the last trained one of its episode."""
    valid: npt.NDArray[np.bool_]
    length: Ints
    """Sampled tokens that may be trained."""
    local: Floats
    """The part of `reward` that was given to an agent; the rest is the team's."""

    def __len__(self) -> int:
        return len(self.turn)


@dataclass(frozen=True, slots=True)
class Batch:
    """Groups of one learner step. Failed, cancelled and divergent episodes are not in it."""

    groups: tuple[Group, ...]
    episodes: tuple[Episode, ...]
    turns: TurnColumns
    agents: tuple[str, ...]
    lost: int = 0
    """Episodes that were asked for and did not end; they are in no statistic."""
    extras: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Credit:
    """Advantage of each turn: (T,), or one array a turn with a number per sampled token; and a weight per turn.

    A turn shared by several rows carries this in each of them, unless `by_row` says otherwise.
    """

    turns: TurnColumns
    advantage: Floats | Sequence[Floats]
    weight: Floats | None = None
    by_row: Mapping[tuple[int, str], float | Floats] = field(default_factory=dict[tuple[int, str], "float | Floats"])
    """(index of a turn, id of the last turn of a row) -> the advantage of that turn in that row, where it is another one.
    Advantages of one turn are never summed over rows: that is wrong before a clip as soon as their signs differ."""
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    mask: Sequence[Bools] | None = None
    """Of each turn which of its sampled (or of its drawn) tokens are trained; None = all drawn ones. The others are in no loss
    and in no mean of it, in whichever row they stand; an advantage of 0 leaves a token in the means."""
    inherited: bool = False
    """Whether a fork trains, as its own, the tokens that it goes on from inside a turn (`agentrl.credit.tree`), with the
    log-probs of who drew them. A shared prefix then carries the credit of each leaf, wherever it ends."""


class Estimator(Protocol):
    """Batch -> credit. A frozen dataclass with its own numbers as fields."""

    needs: ClassVar[Needs]

    def __call__(self, batch: Batch) -> Credit: ...
