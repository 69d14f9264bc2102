"""Credit to rows: which paths are trained, where in them, and by how much."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from agentrl.credit.batch import MASKED
from agentrl.credit.contract import Batch, Bools, Credit, Floats
from agentrl.credit.masks import over_sampled
from agentrl.credit.tree import as_drawn
from agentrl.episode import Episode, FloatArray, IntArray, Turn
from agentrl.errors import UserError
from agentrl.learning.contract import Row, TrainedTurn

if TYPE_CHECKING:
    import numpy.typing as npt


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """A turn on a path: its sampled tokens stand at [start, end), whole or cut off by the path's next turn."""

    turn: Turn
    start: int
    end: int
    whole: bool


@dataclass(frozen=True, slots=True, eq=False)
class Path:
    """The tokens from the root to the end of a turn, and where each turn on it sampled; root first."""

    ids: IntArray
    spans: tuple[Span, ...]


def trace(episode: Episode, leaf: Turn) -> Path:
    """The path that ends with `leaf`. `UserError` where a turn keeps more tokens than its parent's path has."""
    parts: list[IntArray] = []
    spans: list[Span] = []
    turn, limit = leaf, episode.path_length(leaf)
    while True:
        base = turn.parent.kept if turn.parent is not None else 0
        start = base + len(turn.context_ids)
        end = start + len(turn.sampled_ids)
        if limit > end:
            raise UserError(
                f"episode {episode.id}: a turn keeps {limit} tokens of turn {turn.id}, whose path has {end}; mend the record"
            )
        parts.append(turn.sampled_ids[: max(limit - start, 0)])
        parts.append(turn.context_ids[: max(limit - base, 0)])
        if limit > start or len(turn.sampled_ids) == 0:
            spans.append(Span(turn, start, min(end, limit), limit == end))
        if turn.parent is None:
            return Path(np.concatenate(parts[::-1]), tuple(spans[::-1]))
        limit = min(limit, base)
        turn = episode.by_id[turn.parent.turn]


def to_rows(batch: Batch, credit: Credit, policy: str | None = None, *, shared: Literal["each", "once"] = "each") -> list[Row]:
    """One row for each (episode, leaf path) that holds a trained turn of `policy` (None = of any), in the batch's order.

    A leaf path ends with a turn that no other turn goes on from in full. A turn that several paths share is trained in each
    of them, or with `shared="once"` in the first alone; a turn of which a path keeps only a part is not trained in that path.
    Overlong episodes are left out unless the batch trains them. Turns of weight 0 are not trained; if the turns of a row
    weigh the same, that is the row's weight, else each turn's weight is multiplied into its advantage. `Credit.by_row` gives a
    turn another advantage in the rows it names. A token that `Credit.mask` leaves out has advantage 0 and no part in the loss;
    a turn of which none is left is not trained. With `Credit.inherited` the turns of forks are as they were drawn
    (`agentrl.credit.tree.as_drawn`).
    """
    chosen = _credited(batch, credit, policy)
    own = {(int(batch.turns.episode[t]), batch.turns.turn[t].id, leaf): a for (t, leaf), a in credit.by_row.items()}
    rows: list[Row] = []
    for number, (episode, credited) in enumerate(zip(batch.episodes, chosen, strict=True)):
        made = _episode_rows(episode, credited, once=shared == "once")
        rows.extend(_with_own(row, number, own) if own else row for row in made)
    return rows


def _with_own(row: Row, number: int, own: Mapping[tuple[int, str, str], float | Floats]) -> Row:
    """The row with the advantages that its turns have in it alone."""
    places = [(number, trained.turn.id, row.leaf.id) for trained in row.trained]
    if not any(place in own for place in places):
        return row
    trained = tuple(
        _trained(old.turn, own[place], old.mask) if place in own else old
        for old, place in zip(row.trained, places, strict=True)
    )
    return replace(row, trained=trained)


_Credited: TypeAlias = dict[str, tuple[TrainedTurn, float]]
"""Turn id -> its advantage per sampled token, and its weight."""


def _credited(batch: Batch, credit: Credit, policy: str | None) -> list[_Credited]:
    """For each episode the turns that are trained."""
    turns = batch.turns
    if len(credit.advantage) != len(turns) or (credit.weight is not None and len(credit.weight) != len(turns)):
        raise UserError(
            f"credit must hold one advantage (and weight) for each of the batch's {len(turns)} turns, "
            f"got {len(credit.advantage)}; build it from batch.turns without leaving any out"
        )
    masked: npt.NDArray[np.bool_] = batch.extras[MASKED] if MASKED in batch.extras else np.zeros(len(turns), np.bool_)
    known = {episode.id: episode for group in batch.groups for episode in group.episodes} if credit.inherited else {}
    result: list[_Credited] = [{} for _ in batch.episodes]
    for t, turn in enumerate(turns.turn):
        weight = 1.0 if credit.weight is None else float(credit.weight[t])
        if not math.isfinite(weight) or weight < 0:
            raise UserError(f"credit: turn {turn.id} has weight {weight}; weights must be finite and not negative")
        if weight == 0 or masked[t] or (policy is not None and turn.policy != policy):
            continue
        episode = int(turns.episode[t])
        drawn = as_drawn(turn, batch.episodes[episode], known)
        mask = None if credit.mask is None else over_sampled(drawn, credit.mask[t])
        if mask is None or mask.any():
            result[episode][turn.id] = (_trained(drawn, credit.advantage[t], mask), weight)
    return result


def _trained(turn: Turn, advantage: float | Floats, mask: Bools | None) -> TrainedTurn:
    values = _per_token(turn, advantage)
    if mask is None or mask[turn.forced :].all():
        return TrainedTurn(turn, values)
    return TrainedTurn(turn, np.where(mask, values, np.float32(0)), mask)


def _per_token(turn: Turn, advantage: float | Floats) -> FloatArray:
    """(S,) float32 of one number, of one per sampled token, or of one per drawn token (forced ones then get 0)."""
    values = np.asarray(advantage, dtype=np.float32)
    sampled = len(turn.sampled_ids)
    if not np.isfinite(values).all():
        raise UserError(f"credit: the advantage of turn {turn.id} is not finite; mend the estimator")
    if values.ndim == 0:
        return np.full(sampled, values, dtype=np.float32)
    if values.shape == (sampled - turn.forced,):
        values = np.concatenate((np.zeros(turn.forced, np.float32), values))
    if values.shape != (sampled,):
        raise UserError(f"credit: turn {turn.id} has {sampled} sampled tokens but advantages of shape {values.shape}")
    return values


def _episode_rows(episode: Episode, credited: _Credited, *, once: bool) -> Iterator[Row]:
    if not credited:
        return
    continued = {
        turn.parent.turn
        for turn in episode.turns
        if turn.parent is not None and turn.parent.kept == episode.path_length(episode.by_id[turn.parent.turn])
    }
    seen: set[str] = set()
    for leaf in episode.turns:
        if leaf.id in continued:
            continue
        on_path = [span.turn.id for span in trace(episode, leaf).spans if span.whole and span.turn.id in credited]
        picked = [credited[name] for name in on_path if not (once and name in seen)]
        seen.update(on_path)
        if picked:
            yield _row(episode, leaf, picked)


def _row(episode: Episode, leaf: Turn, picked: Sequence[tuple[TrainedTurn, float]]) -> Row:
    weights = {weight for _, weight in picked}
    if len(weights) == 1:
        return Row(episode, leaf, tuple(trained for trained, _ in picked), weights.pop())
    scaled = (replace(trained, advantage=trained.advantage * np.float32(weight)) for trained, weight in picked)
    return Row(episode, leaf, tuple(scaled))
