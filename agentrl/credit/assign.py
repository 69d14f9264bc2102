"""What a learner step makes of its groups: rewards transformed, turns as columns, credit for each; all of it checked."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from agentrl.credit.batch import to_batch
from agentrl.credit.contract import Batch, Bools, Credit, Estimator, Floats
from agentrl.credit.masks import over_sampled
from agentrl.episode import Group
from agentrl.errors import UserError, boundary, capture
from agentrl.transforms.apply import transformed
from agentrl.transforms.culprit import called, failed

if TYPE_CHECKING:
    from agentrl.transforms.contract import RewardTransform


def assign(
    groups: Sequence[Group],
    estimator: Estimator,
    transforms: Sequence[RewardTransform] = (),
    *,
    min_group: int = 1,
    train_overlong: bool = False,
    policies: Collection[str] | None = None,
) -> tuple[Batch, Credit]:
    """The batch of these groups and the credit of its turns.

    A group of several with fewer than `min_group` finished members is left out; `train_overlong` and `policies` are those of
    `to_batch`.
    `UserError` for a transform or an estimator that raises or gives what it should not: it names the plug-in, what it gave,
    where, and what to do.
    """
    kept = [group for group in groups if len(group.finished) >= min(min_group, group.wanted)]
    batch = to_batch(transformed(kept, transforms), policies=policies, train_overlong=train_overlong)
    return batch, estimate(batch, estimator)


def estimate(batch: Batch, estimator: Estimator) -> Credit:
    """The estimator's credit, checked. A batch without turns has none, and no estimator is asked."""
    if not len(batch.turns):
        return Credit(batch.turns, np.zeros(0))
    credit: Any = None
    with capture() as caught:
        credit = estimator(batch)
    if caught.error is not None:
        raise failed("estimator", estimator, caught.error) from caught.error
    name = called("estimator", estimator)
    with boundary(UserError, f"{name} gave a Credit that cannot be read"):
        _check(credit, batch, name)
    return credit


def _check(credit: Any, batch: Batch, name: str) -> None:
    if not isinstance(credit, Credit):
        raise UserError(f"{name} gave {_kind(credit)}, wanted a Credit; end it with `return Credit(batch.turns, advantage)`")
    _check_column(credit.advantage, batch, name, "advantage")
    if credit.weight is not None:
        _check_column(credit.weight, batch, name, "weight")
        if (credit.weight < 0).any():
            t = int(np.argmax(credit.weight < 0))
            raise UserError(f"{name} gave weight {credit.weight[t]} {_at(batch, t)}; weights must not be negative")
    if credit.mask is not None:
        _check_masks(credit.mask, batch, name)
    for (t, leaf), advantage in credit.by_row.items():
        if not 0 <= t < len(batch.turns):
            raise UserError(
                f"{name} gave by_row[{t}, {leaf!r}], wanted the index of one of the batch's {len(batch.turns)} turns"
            )
        _check_turn(advantage, batch, t, name, f"by_row[{t}, {leaf!r}]")
    metrics: Mapping[str, Any] = credit.metrics
    for key, value in metrics.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{name} gave metric {key!r} = {value!r} ({_kind(value)}), wanted a finite number; give float(...)")


def _check_masks(masks: Sequence[Bools], batch: Batch, name: str) -> None:
    if len(masks) != len(batch.turns):
        raise UserError(f"{name} gave masks for {len(masks)} turns, wanted one for each of the batch's {len(batch.turns)}")
    for t, (turn, mask) in enumerate(zip(batch.turns.turn, masks, strict=True)):
        try:
            over_sampled(turn, mask)
        except UserError as error:
            raise UserError(f"{name} gave a mask {_at(batch, t)} that does not fit it: {error}") from error


def _check_column(values: Any, batch: Batch, name: str, what: str) -> None:
    """One number a turn as an array, or for advantages a sequence with one number or array for each turn."""
    wanted = f"({len(batch.turns)},), one number for each turn of the batch"
    if isinstance(values, np.ndarray):
        column: Floats = values
        if column.dtype.kind not in "fiu":
            raise UserError(f"{name} gave {what} of dtype {column.dtype}, wanted float64 of shape {wanted}")
        if column.shape != (len(batch.turns),):
            hint = "build it from the columns of batch.turns, leaving none out"
            raise UserError(f"{name} gave {what} of shape {column.shape}, wanted {wanted}; {hint}")
        bad = np.flatnonzero(~np.isfinite(column))
        if len(bad):
            more = f" and of {len(bad) - 1} more turns" if len(bad) > 1 else ""
            hint = "a mean of nothing, or a division by zero?"
            raise UserError(f"{name} gave {what} {column[bad[0]]} {_at(batch, int(bad[0]))}{more}; {hint}")
        return
    if what != "advantage" or not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise UserError(f"{name} gave {what} as {_kind(values)}, wanted a float64 array of shape {wanted}")
    if len(values) != len(batch.turns):
        raise UserError(f"{name} gave {what} for {len(values)} turns, wanted one for each of the batch's {len(batch.turns)}")
    for t, value in enumerate(values):
        _check_turn(value, batch, t, name, what)


def _check_turn(value: Any, batch: Batch, t: int, name: str, what: str) -> None:
    """A number, or one for each sampled (or each drawn) token."""
    array = np.asarray(value)
    turn = batch.turns.turn[t]
    sampled = len(turn.sampled_ids)
    if array.dtype.kind not in "fiu":
        raise UserError(f"{name} gave {what} of dtype {array.dtype} {_at(batch, t)}; wanted numbers")
    if array.shape not in ((), (sampled,), (sampled - turn.forced,)):
        wanted = f"a number or ({sampled},), one for each sampled token"
        raise UserError(f"{name} gave {what} of shape {array.shape} {_at(batch, t)}; wanted {wanted}")
    if not np.isfinite(array).all():
        token = f" at token {int(np.argmax(~np.isfinite(array)))}" if array.ndim else ""
        raise UserError(f"{name} gave {what} {array[~np.isfinite(array)].flat[0]}{token} {_at(batch, t)}; mend the estimator")


def _at(batch: Batch, t: int) -> str:
    turn, episode = batch.turns.turn[t], batch.episodes[int(batch.turns.episode[t])]
    return f"for turn {turn.index} of agent {turn.agent} ({turn.id}) in episode {episode.id}"


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    return "None" if value is None else f"a {type(value).__name__}"
