"""From a loss for each token to the loss of a step: which tokens and which episodes weigh how much."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from agentrl.objectives.contract import Entries

if TYPE_CHECKING:
    from torch import Tensor

Aggregate: TypeAlias = Literal["token", "row", "episode"]


def aggregated(
    losses: Tensor, entries: Entries, over: Aggregate, *, length: float | None = None, kept: Tensor | None = None
) -> Tensor:
    """The loss of a step, of the tokens that are `kept` (None = all); 0 where none is.

    "token": the weighted mean over all tokens. "row" and "episode": the mean over rows, or episodes, of the mean over their
    tokens; what has no kept token is in no mean. With a `length` the sum over a row's (an episode's; with "token", over all)
    tokens divided by it stands in the place of their mean. Weights are relative: each mean divides by their sum.
    """
    weight = entries.weight.to(losses.dtype)
    trained = weight if kept is None else weight * kept
    unit = {"token": entries.row * 0, "row": entries.row, "episode": entries.episode}[over]
    values = unit_means(losses, unit, trained)
    if length is not None:
        values = values * _unit_sums((trained != 0).to(losses.dtype), unit) / length
    # The weight of a unit is the mean weight of its tokens: for a row, its own.
    units = unit_means(weight, unit, None if kept is None else kept.to(weight.dtype))
    return (units * values).sum() / _or_one(units.sum())


def unit_means(values: Tensor, unit: Tensor, weight: Tensor | None = None) -> Tensor:
    """(Weighted) mean of the values of each unit, by unit index; 0 for a unit without (weighted) values."""
    factor = weight if weight is not None else values.new_ones(len(values))
    return _unit_sums(values * factor, unit) / _or_one(_unit_sums(factor, unit))


def _unit_sums(values: Tensor, unit: Tensor) -> Tensor:
    return values.new_zeros(int(unit.max()) + 1 if len(unit) else 0).index_add(0, unit, values)


def _or_one(totals: Tensor) -> Tensor:
    """The totals, 1 in the place of 0."""
    return totals.where(totals != 0, totals.new_ones(()))
