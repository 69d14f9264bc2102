"""Values of turns: where estimators find them, and how those that a critic gave are put on turns and read back from a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np

from agentrl.credit.contract import Batch, Estimator, Floats
from agentrl.episode import Column, Episode, FloatArray, Group, Turn

if TYPE_CHECKING:
    from agentrl.store.contract import Store

VALUE = "value"
"""Name of a turn's column (a value before each sampled token) or probe (one value, before the turn)."""
CRITIC = "critic"
"""Name of a run's critic among its learners; what it learned of is stored by it, as that of policies is."""
VALUES = "critic/value"
"""By this name the store keeps the values that credit used. No policy is called so: names have no '/'."""

Values: TypeAlias = Mapping[tuple[str, str], FloatArray]
"""(episode, turn) -> (S,) the value before each of the turn's sampled tokens, or one number for all of them."""


@runtime_checkable
class ValueBased(Estimator, Protocol):
    """An estimator that a critic can be trained for."""

    @property
    def over(self) -> Literal["turn", "token"]:
        """Where it reads values: before a turn, or before each of its drawn tokens."""
        ...

    def returns(self, batch: Batch) -> Floats | Sequence[Floats]:
        """What the values should have been: for each turn a number, or over tokens one for each drawn token."""
        ...


def value_based(estimator: Estimator) -> ValueBased | None:
    """The estimator itself, or the one among its fields that it builds on; None if neither reads values to be learned."""
    if isinstance(estimator, ValueBased):
        return estimator
    parts = [getattr(estimator, each.name) for each in fields(estimator)] if is_dataclass(estimator) else []
    return next((part for part in parts if isinstance(part, ValueBased)), None)


def with_values(groups: Sequence[Group], values: Values) -> list[Group]:
    """The groups with a column of values on each turn that has some."""
    return [replace(group, episodes=tuple(_valued(episode, values) for episode in group.episodes)) for group in groups]


def read_values(store: Store) -> Values:
    """The values that the committed steps of a run used; empty if it had no critic. Of turns that several steps used, those
    of the last."""
    found: dict[tuple[str, str], FloatArray] = {}
    for stored in store.steps(VALUES):
        for row in stored.rows:
            for turn, packed in zip(row.turns, row.advantages, strict=True):
                found[row.episode, turn] = np.frombuffer(packed, "<f4").astype(np.float32)
    return found


def _valued(episode: Episode, values: Values) -> Episode:
    def valued(turn: Turn) -> Turn:
        found = values.get((episode.id, turn.id))
        if found is None:
            return turn
        column = Column(VALUE, np.broadcast_to(found, (len(turn.sampled_ids),)))
        return replace(turn, columns={**turn.columns, VALUE: column})

    return replace(episode, turns=tuple(valued(turn) for turn in episode.turns))
