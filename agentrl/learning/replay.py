"""Rows as the store keeps them, and learning again from what was stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from agentrl.credit.tree import as_drawn
from agentrl.episode import Episode, Turn, Version
from agentrl.errors import LearnerError, UserError
from agentrl.learning.contract import Learner, Row, TrainedTurn
from agentrl.store.contract import Store, StoredRow


def to_stored(rows: Sequence[Row]) -> tuple[StoredRow, ...]:
    """The rows by id: what is needed, beside the episodes, to train on them again. Masked tokens have advantage 0."""
    return tuple(
        StoredRow(
            episode=row.episode.id,
            leaf=row.leaf.id,
            turns=tuple(trained.turn.id for trained in row.trained),
            advantages=tuple(_pack(trained, row.episode.by_id[trained.turn.id].forced) for trained in row.trained),
            weight=row.weight,
        )
        for row in rows
    )


def from_stored(stored: Sequence[StoredRow], episodes: Mapping[str, Episode] | Iterable[Episode]) -> list[Row]:
    """The inverse of `to_stored`, to the bit. `UserError` names an episode or turn that is not there.

    Where a row trains tokens that a fork inherited, the episodes must hold those that it was forked from.
    """
    given = episodes.values() if isinstance(episodes, Mapping) else episodes
    known = {episode.id: episode for episode in given}
    rows: list[Row] = []
    for row in stored:
        if row.episode not in known:
            raise UserError(f"a stored row is of episode {row.episode}, which was not given; pass every episode of the step")
        episode = known[row.episode]
        pairs = zip(row.turns, row.advantages, strict=True)
        trained = tuple(_unpack(_turn(episode, name), packed, episode, known) for name, packed in pairs)
        rows.append(Row(episode, _turn(episode, row.leaf), trained, row.weight))
    return rows


def relearn(store: Store, policy: str, learner: Learner, *, until: int | None = None, before: int | None = None) -> Version:
    """Makes again the stored steps that follow the learner's version, and gives the version they lead to.

    The learner stands where the steps begin: freshly opened on the run's model, or restored from a checkpoint. Its weights
    after each step are those of the run, to the bit, on the same machine with the same number of threads. With `until`, stops
    when the learner has made that many steps in all; with `before`, at the stored step of that number. `LearnerError` if a
    step began from other weights than the learner has.
    """
    # A batch of which no row was trained is a stored step without rows, and made no learner step: so a stored step's number is
    # never below that of the version it began from.
    for step in store.steps(policy, after=learner.version.step - 1):
        if (until is not None and learner.version.step >= until) or (before is not None and step.step >= before):
            break
        if step.before.step < learner.version.step or not step.rows:
            continue
        if step.before != learner.version:
            raise LearnerError(
                f"stored step {step.step} of {policy} began from {step.before} but the learner has {learner.version}; "
                "restore the checkpoint of that version, or open the model that the run began with"
            )
        learner.step(from_stored(step.rows, _episodes(store, step.rows)))
    return learner.version


def _episodes(store: Store, rows: Sequence[StoredRow]) -> dict[str, Episode]:
    """The episodes of the rows, and those that they were forked from."""
    found: dict[str, Episode] = {}
    names = list(dict.fromkeys(row.episode for row in rows))
    for name in names:
        if name not in found:
            found[name] = store.episode(name)
            above = found[name].fork_of
            if above is not None and any(turn.forced for turn in found[name].turns):
                names.append(above)
    return found


def _pack(trained: TrainedTurn, forced: int) -> bytes:
    """Little-endian float32, nan for a token that is not trained; one number if just those behind the first `forced`, the drawn
    ones of the record, are trained, and all with the same bits."""
    data = np.full(len(trained.advantage), np.nan, dtype="<f4")
    data[trained.places] = trained.advantage[trained.places]
    bits = data[forced:].view("<u4")
    alike = len(bits) > 0 and bool((bits == bits[0]).all()) and not np.isnan(data[forced])
    return data[forced : forced + 1].tobytes() if alike and np.isnan(data[:forced]).all() else data.tobytes()


def _unpack(turn: Turn, packed: bytes, episode: Episode, known: Mapping[str, Episode]) -> TrainedTurn:
    """The turn as it was trained: as it was drawn, if tokens that are forced in the record were trained."""
    values = np.frombuffer(packed, dtype="<f4")
    count = len(turn.sampled_ids)
    if len(values) not in (1, count):
        raise UserError(f"a stored row has {len(values)} advantages for turn {turn.id}, which has {count} sampled tokens")
    if len(values) == 1 and not np.isnan(values[0]):
        return TrainedTurn(turn, np.full(count, values[0], np.float32))
    trained = ~np.isnan(values)
    drawn = as_drawn(turn, episode, known) if trained[: turn.forced].any() else turn
    if trained[: drawn.forced].any():
        raise UserError(
            f"a stored row trains tokens of turn {turn.id} that episode {episode.id} inherited from {episode.fork_of}, "
            "which was not given; pass the episodes that it was forked from, too"
        )
    advantage = np.where(trained, values, np.float32(0)).astype(np.float32)
    return TrainedTurn(drawn, advantage, None if trained[drawn.forced :].all() else trained)


def _turn(episode: Episode, name: str) -> Turn:
    if name not in episode.by_id:
        raise UserError(f"a stored row is of turn {name}, which episode {episode.id} does not have; use the run's own store")
    return episode.by_id[name]
