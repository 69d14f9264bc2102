"""The credit that turns were trained with, as the store's committed steps hold it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from agentrl.episode import Episode, FloatArray, Turn
from agentrl.errors import StoreError
from agentrl.store.contract import EpisodeFilter, Store


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """One row's credit of a turn: the learner step, the path by its last turn, an advantage a sampled token, a weight."""

    step: int
    leaf: str
    advantage_S: FloatArray
    weight: float


@dataclass(frozen=True, slots=True, eq=False)
class TurnCredit:
    """A turn's credit over all rows it was trained in, at least one."""

    turn: Turn
    rows: tuple[Trained, ...]

    @property
    def advantage_S(self) -> FloatArray:
        """The mean over the rows."""
        return np.stack([row.advantage_S for row in self.rows]).mean(axis=0, dtype=np.float32)

    @property
    def drawn(self) -> FloatArray:
        """The part of `advantage_S` that is trained: forced tokens are not."""
        return self.advantage_S[self.turn.forced :]

    @property
    def mean(self) -> float:
        """Over the drawn tokens."""
        return float(self.drawn.mean()) if len(self.drawn) else 0.0

    def __str__(self) -> str:
        drawn = self.drawn
        low, high = (float(drawn.min()), float(drawn.max())) if len(drawn) else (0.0, 0.0)
        spread = f" ({low:+.3g} to {high:+.3g})" if low != high else ""
        rows = f" in {len(self.rows)} rows" if len(self.rows) > 1 else ""
        return f"{self.mean:+.3g}{spread}{rows}"


def recorded_credit(store: Store, episodes: Iterable[Episode], *, within: int = 0) -> dict[str, dict[str, TurnCredit]]:
    """{episode id: {turn id: credit}} of every turn that a committed step trained.

    Reads only the steps that can hold them: the batch an episode was sampled for, and `within` more.
    """
    wanted = {episode.id: episode for episode in episodes}
    steps = {head.id: head.step for head in store.heads(EpisodeFilter(ids=tuple(wanted)))}
    batches = sorted({step + late for step in steps.values() for late in range(within + 1)})
    found: dict[str, dict[str, list[Trained]]] = {name: {} for name in wanted}
    for policy in sorted({turn.policy for episode in wanted.values() for turn in episode.turns}):
        for batch in batches:
            step = next(iter(store.steps(policy, after=batch - 1)), None)
            if step is None or step.step != batch:
                continue
            for row in step.rows:
                if row.episode in wanted:
                    for name, packed in zip(row.turns, row.advantages, strict=True):
                        trained = Trained(batch, row.leaf, _unpack(wanted[row.episode], name, packed), row.weight)
                        found[row.episode].setdefault(name, []).append(trained)
    return {
        name: {turn: TurnCredit(wanted[name].by_id[turn], tuple(rows)) for turn, rows in turns.items()}
        for name, turns in found.items()
    }


def largest(credit: Mapping[str, TurnCredit]) -> float:
    """The largest absolute mean of a turn."""
    return max((abs(entry.mean) for entry in credit.values()), default=0.0)


def _unpack(episode: Episode, name: str, packed: bytes) -> FloatArray:
    """One number a sampled token, 0 for one that is out of the loss; the store keeps a single one where all are equal."""
    values = np.nan_to_num(np.frombuffer(packed, dtype="<f4"))  # nan: out of the loss
    if name not in episode.by_id:
        raise StoreError(f"a stored row is of turn {name}, which episode {episode.id} does not have; the store is damaged")
    count = len(episode.by_id[name].sampled_ids)
    if len(values) not in (1, count):
        raise StoreError(f"a stored row has {len(values)} advantages for turn {name}, which has {count} sampled tokens")
    return np.broadcast_to(values, count)
