"""The functions that nearly every estimator is made of: `returns`, `totals`, `normalise`, `combine`. All in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from agentrl.credit.contract import Floats, Ints, TurnColumns
from agentrl.errors import UserError

if TYPE_CHECKING:
    import numpy.typing as npt


def returns(
    turns: TurnColumns, gamma: float = 1.0, *, by: Literal["episode", "agent"] = "episode", outcome: bool = True
) -> Floats:
    """Return-to-go of each turn, (T,): R_t = r_t + gamma R_{t'}, where t' is the next turn of the episode.

    With `by="agent"` t' is the next turn of the same agent in the episode, so that an agent's return holds its own rewards
    and the team's. The team's outcome is part of r on the last turn of each such sequence (`outcome=False` leaves it out).
    """
    sequences = _Groups.of((turns.episode, turns.agent) if by == "agent" else (turns.episode,), len(turns))
    ends, order = sequences.starts + sequences.size - 1, sequences.order
    ahead = turns.reward[order].astype(np.float64)
    if outcome:
        ahead[ends] += turns.outcome[order[ends]]
    for back in range(1, int(sequences.size.max(initial=0))):  # a step of all sequences at once
        at = ends[sequences.size > back] - back
        ahead[at] += gamma * ahead[at + 1]
    result = np.empty_like(ahead)
    result[order] = ahead
    return result


def totals(turns: TurnColumns) -> Floats:
    """The whole reward of each turn's episode, (T,): the rewards of its turns and the team's outcome."""
    return np.bincount(turns.episode, turns.reward)[turns.episode] + turns.outcome


def normalise(
    values: npt.ArrayLike,
    by: Sequence[Ints],
    *,
    std: Literal["sample", "population"] | None = None,
    eps: float = 1e-6,
    singleton: float | Literal["raw"] = 0.0,
    once: Ints | None = None,
) -> Floats:
    """(value - mean) / (std + eps) within the groups that agree in all columns of `by`; without `std`, value - mean.

    `sample` divides the squares by n - 1 (verl), `population` by n. A group of one gets `singleton`, or its value as it is
    ("raw", as verl does). A group of equal values gets exactly 0, whatever rounding would give. `once` names a unit for each
    value (an episode, say): then only the first value of each unit is in the statistics and counts towards the group's size.
    """
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        return np.zeros(0)
    groups = _Groups.of(by, len(array), once)
    sample, of = array[groups.order[groups.voters]], groups.number[groups.voters]
    sample = sample[np.lexsort((sample, of))]  # ascending in each group: its sums do not depend on the order of rows
    equal = sample[groups.starts] == sample[groups.starts + groups.size - 1]
    mean = np.where(equal, sample[groups.starts], np.add.reduceat(sample, groups.starts) / groups.size)
    centred = array[groups.order] - mean[groups.number]
    if std is not None:
        squares = np.add.reduceat((sample - mean[of]) ** 2, groups.starts)
        deviation = np.sqrt(squares / np.maximum(groups.size - (std == "sample"), 1)) + eps
        centred /= np.where(deviation == 0.0, 1.0, deviation)[groups.number]
    alone = (groups.size == 1)[groups.number]
    centred[alone] = array[groups.order[alone]] if singleton == "raw" else singleton
    result = np.empty_like(centred)
    result[groups.order] = centred
    return result


def sizes(by: Sequence[Ints], *, once: Ints | None = None) -> Ints:
    """How many are in the group of each value; with `once`, how many units. `by` must have a column."""
    groups = _Groups.of(by, len(by[0]), once)
    result = np.empty(len(groups.order), np.int64)
    result[groups.order] = groups.size[groups.number]
    return result


def alone(turns: TurnColumns) -> npt.NDArray[np.bool_]:
    """(T,) whether the turn's episode is the only one of its group, where turns have none but their own to be compared with."""
    return sizes(by=(turns.group,), once=turns.episode) == 1


def combine(*terms: npt.ArrayLike, weights: Sequence[float] | None = None) -> Floats:
    """The weighted sum of columns of one length; every weight is 1 unless given."""
    arrays = [np.asarray(term, dtype=np.float64) for term in terms]
    factors = [1.0] * len(arrays) if weights is None else list(weights)
    if not arrays or len(factors) != len(arrays) or len({array.shape for array in arrays}) != 1:
        shapes = [array.shape for array in arrays]
        raise UserError(f"combine needs columns of one length and a weight for each, got {shapes} and {len(factors)} weights")
    total = factors[0] * arrays[0]
    for factor, array in zip(factors[1:], arrays[1:], strict=True):
        total = total + factor * array
    return total


@dataclass(frozen=True, slots=True)
class _Groups:
    """N values, sorted into G groups of those that agree in all columns; and in a group by unit, if there are some."""

    order: Ints
    """(N,) the values' places, group after group; equal ones keep their order."""
    number: Ints
    """(N,) the group of each, in that order."""
    voters: npt.NDArray[np.bool_]
    """(N,) whether it is the first of its unit in the group, in that order."""
    starts: Ints
    """(G,) where each group begins among the V voters."""
    size: Ints
    """(G,) how many voters it has."""

    @classmethod
    def of(cls, by: Sequence[Ints], length: int, once: Ints | None = None) -> _Groups:
        columns = [np.asarray(column) for column in by]
        if any(column.shape != (length,) for column in columns):
            shapes = [column.shape for column in columns]
            raise UserError(f"normalise(by=...) needs columns of the {length} values' length, got shapes {shapes}")
        keys = columns if once is None else [*columns, once]
        order = np.lexsort(keys[::-1]) if keys else np.arange(length)
        first = np.zeros(length, np.bool_)
        first[:1] = True
        for column in columns:
            first[1:] |= column[order[1:]] != column[order[:-1]]
        voters = np.ones(length, np.bool_)
        if once is not None:
            voters[1:] = first[1:] | (once[order[1:]] != once[order[:-1]])
        starts = np.flatnonzero(first[voters])
        return cls(order, np.cumsum(first) - 1, voters, starts, np.diff(starts, append=np.count_nonzero(voters)))
