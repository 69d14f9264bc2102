"""The functions that nearly every estimator is made of: `returns`, `totals`, `normalise`, `combine`. All in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
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
    episodes, rewards, outcomes = turns.episode.tolist(), turns.reward.tolist(), turns.outcome.tolist()
    agents = turns.agent.tolist() if by == "agent" else [0] * len(turns)
    result = [0.0] * len(turns)
    ahead: dict[tuple[int, int], float] = {}
    for t in range(len(turns) - 1, -1, -1):
        key = (episodes[t], agents[t])
        if key in ahead:
            result[t] = rewards[t] + gamma * ahead[key]
        else:
            result[t] = rewards[t] + (outcomes[t] if outcome else 0.0)
        ahead[key] = result[t]
    return np.array(result, dtype=np.float64)


def totals(turns: TurnColumns) -> Floats:
    """The whole reward of each turn's episode, (T,): the rewards of its turns and the team's outcome."""
    if not len(turns):
        return np.zeros(0)
    sums = np.zeros(int(turns.episode.max()) + 1)
    np.add.at(sums, turns.episode, turns.reward)
    return sums[turns.episode] + turns.outcome


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
    alone, groups = _groups(by, len(array))
    result = np.zeros_like(array)
    result[alone] = array[alone] if singleton == "raw" else singleton
    for members in groups:
        voters = members if once is None else members[_first_of_each(once[members])]
        if len(voters) == 1:
            result[members] = array[members] if singleton == "raw" else singleton
            continue
        sample = array[voters]
        mean = float(sample[0]) if (sample == sample[0]).all() else math.fsum(sample.tolist()) / len(sample)
        centred = array[members] - mean
        if std is not None:
            squares = math.fsum(((sample - mean) ** 2).tolist())
            if squares or eps:
                centred /= math.sqrt(squares / (len(sample) - (std == "sample"))) + eps
        result[members] = centred
    return result


def sizes(by: Sequence[Ints], *, once: Ints | None = None) -> Ints:
    """How many are in the group of each value; with `once`, how many units. `by` must have a column."""
    columns = [np.asarray(column) for column in by]
    _, group = np.unique(np.stack(columns), axis=1, return_inverse=True)
    group = group.reshape(-1)
    units = np.arange(len(group)) if once is None else once
    pairs = np.unique(np.stack((group, units)), axis=1)
    return np.bincount(pairs[0], minlength=1)[group]


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


def _groups(by: Sequence[Ints], length: int) -> tuple[Ints, list[Ints]]:
    """The indices that are alone in their group; and those of each other group, ascending, in the order of their keys."""
    columns = [np.asarray(column) for column in by]
    if any(column.shape != (length,) for column in columns):
        shapes = [column.shape for column in columns]
        raise UserError(f"normalise(by=...) needs columns of the {length} values' length, got shapes {shapes}")
    order = np.lexsort(columns[::-1]) if columns else np.arange(length)  # stable: ascending within a group
    if not length:
        return order, []
    changed = np.zeros(length - 1, dtype=np.bool_)
    for column in columns:
        changed |= column[order][1:] != column[order][:-1]
    bounds = [0, *(np.flatnonzero(changed) + 1).tolist(), length]
    sizes = np.diff(bounds)
    several = [order[start:end] for start, end in pairwise(bounds) if end - start > 1]
    return order[np.array(bounds[:-1])[sizes == 1]], several


def _first_of_each(units: Ints) -> list[int]:
    """Where each unit stands first."""
    seen: dict[int, int] = {}
    for at, unit in enumerate(units.tolist()):
        seen.setdefault(unit, at)
    return list(seen.values())
