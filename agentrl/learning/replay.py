"""Rows as the store keeps them, and learning again from what was stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

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
            advantages=tuple(_pack(trained) for trained in row.trained),
            weight=row.weight,
        )
        for row in rows
    )


def from_stored(stored: Sequence[StoredRow], episodes: Mapping[str, Episode] | Iterable[Episode]) -> list[Row]:
    """The inverse of `to_stored`, to the bit. `UserError` names an episode or turn that is not there."""
    given = episodes.values() if isinstance(episodes, Mapping) else episodes
    known = {episode.id: episode for episode in given}
    rows: list[Row] = []
    for row in stored:
        if row.episode not in known:
            raise UserError(f"a stored row is of episode {row.episode}, which was not given; pass every episode of the step")
        episode = known[row.episode]
        trained = tuple(_unpack(_turn(episode, name), packed) for name, packed in zip(row.turns, row.advantages, strict=True))
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
        names = dict.fromkeys(row.episode for row in step.rows)
        learner.step(from_stored(step.rows, {name: store.episode(name) for name in names}))
    return learner.version


def _pack(trained: TrainedTurn) -> bytes:
    """Little-endian float32: one number if all are the same bits, else all of them; nan where the mask leaves a token out."""
    masked = trained.advantage if trained.mask is None else np.where(trained.mask, trained.advantage, np.float32(np.nan))
    data = np.ascontiguousarray(masked, dtype="<f4")
    bits = data.view("<u4")
    return data[:1].tobytes() if len(data) and (bits == bits[0]).all() else data.tobytes()


def _unpack(turn: Turn, packed: bytes) -> TrainedTurn:
    values = np.frombuffer(packed, dtype="<f4")
    count = len(turn.sampled_ids)
    if len(values) not in (1, count):
        raise UserError(f"a stored row has {len(values)} advantages for turn {turn.id}, which has {count} sampled tokens")
    advantage = np.full(count, values[0], np.float32) if len(values) == 1 else values.astype(np.float32)
    out = np.isnan(advantage)
    return TrainedTurn(turn, np.where(out, np.float32(0), advantage), ~out) if out.any() else TrainedTurn(turn, advantage)


def _turn(episode: Episode, name: str) -> Turn:
    if name not in episode.by_id:
        raise UserError(f"a stored row is of turn {name}, which episode {episode.id} does not have; use the run's own store")
    return episode.by_id[name]
