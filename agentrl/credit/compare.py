"""Credit over stored episodes, a learner step at a time as training computed it, and two estimators' side by side."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from agentrl.credit.assign import assign, estimate
from agentrl.credit.contract import Batch, Credit, Estimator, Floats, Ints
from agentrl.credit.masks import over_sampled
from agentrl.credit.statistics import returns
from agentrl.credit.values import CRITIC, VALUES, read_values, with_values
from agentrl.episode import Episode, Group, Turn
from agentrl.errors import UserError
from agentrl.store.contract import EpisodeFilter, EpisodeHead
from agentrl.store.sqlite import SQLiteStore
from agentrl.transforms.culprit import called

if TYPE_CHECKING:
    from agentrl.transforms.contract import RewardTransform

Recorded = Mapping[tuple[str, str], bytes]
"""(episode, turn) -> the little-endian float32 advantages that a learner step trained it with."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """T turns in the order of step, group, episode; `first` and `second` are their advantages (of tokens, the mean)."""

    turns: tuple[Turn, ...]
    episodes: tuple[Episode, ...]
    groups: tuple[Group, ...]
    """Those that are in a batch; rewards are as the transforms made them."""
    steps: int
    lost: int
    episode: Ints
    """(T,) index of the turn's episode."""
    returns: Floats
    """(T,) undiscounted return-to-go."""
    first: Floats
    second: Floats | None
    """nan for a turn that was not trained, if these are the recorded ones."""

    @property
    def difference(self) -> Floats:
        """(T,) first - second; first alone if there is no second."""
        return self.first if self.second is None else self.first - self.second

    def largest(self, count: int) -> list[int]:
        """The turns that differ most, the most first; at most `count`, and none that does not differ."""
        size = np.nan_to_num(np.abs(self.difference))
        return [t for t in np.argsort(-size, kind="stable")[:count].tolist() if size[t] > 0]


def read_steps(store: SQLiteStore, where: EpisodeFilter, *, tokens: bool = False) -> list[list[Group]]:
    """The groups of each learner step, in order, with the values that a critic gave; without `tokens`, of turns whose ids and
    log-probs were not read."""
    steps: dict[int, dict[str, list[tuple[EpisodeHead, Episode]]]] = {}
    for head, episode in _whole(store, where) if tokens else store.skim(where):
        steps.setdefault(head.step, {}).setdefault(head.group, []).append((head, episode))
    grouped = [[_group(name, members) for name, members in steps[step].items()] for step in sorted(steps)]
    values = read_values(store)
    return [with_values(groups, values) for groups in grouped] if values else grouped


def _whole(store: SQLiteStore, where: EpisodeFilter) -> Iterator[tuple[EpisodeHead, Episode]]:
    heads = {head.id: head for head in store.heads(where)}
    # a store that is being written has more episodes by now than it had heads
    return ((heads[episode.id], episode) for episode in store.episodes(where) if episode.id in heads)


def _group(name: str, members: Sequence[tuple[EpisodeHead, Episode]]) -> Group:
    """In the order of members, as the rollout plan gave them; the store has them as they began."""
    ordered = sorted(members, key=lambda each: each[0].member)
    head, first = ordered[0]
    return Group(name, first.task, tuple(episode for _, episode in ordered), head.wanted)


def learned(store: SQLiteStore) -> list[str]:
    """Names of the policies that the store's steps have trained."""
    return [name for name in store.policies() if name not in (CRITIC, VALUES)]


def read_recorded(store: SQLiteStore, step: int | None = None) -> Recorded:
    """The advantages of the committed steps, or of one; where several rows share a turn, those of the first."""
    recorded: dict[tuple[str, str], bytes] = {}
    for policy in learned(store):
        for stored in store.steps(policy, after=-1 if step is None else step - 1):
            if step is not None and stored.step > step:
                break
            for row in stored.rows:
                for turn, packed in zip(row.turns, row.advantages, strict=True):
                    recorded.setdefault((row.episode, turn), packed)
    return recorded


def compare(
    steps: Sequence[Sequence[Group]],
    first: Estimator,
    second: Estimator | Recorded | None = None,
    *,
    transforms: Sequence[RewardTransform] = (),
    min_group: int = 1,
    policies: Collection[str] | None = None,
) -> Comparison:
    """Credit of every step's groups by one estimator, and by another or as recorded; of the turns of these policies.

    `UserError` as from `assign`.
    """
    _check_needs(steps, [each for each in (first, second) if each is not None and not isinstance(each, Mapping)])
    batches: list[Batch] = []
    firsts: list[Floats] = []
    seconds: list[Floats] = []
    for groups in steps:
        batch, credit = assign(groups, first, transforms, min_group=min_group, policies=policies)
        batches.append(batch)
        firsts.append(_a_turn(credit))
        if isinstance(second, Mapping):
            seconds.append(np.array(list(_looked_up(batch, second)), dtype=np.float64))
        elif second is not None:
            seconds.append(_a_turn(estimate(batch, second)))
    before = np.cumsum([0, *(len(batch.episodes) for batch in batches)])
    return Comparison(
        turns=tuple(chain.from_iterable(batch.turns.turn for batch in batches)),
        episodes=tuple(chain.from_iterable(batch.episodes for batch in batches)),
        groups=tuple(chain.from_iterable(batch.groups for batch in batches)),
        steps=len(batches),
        lost=sum(batch.lost for batch in batches),
        episode=_joined([batch.turns.episode + start for batch, start in zip(batches, before, strict=False)], np.int64),
        returns=_joined([returns(batch.turns) for batch in batches]),
        first=_joined(firsts),
        second=None if second is None else _joined(seconds),
    )


def _joined(parts: Sequence[np.ndarray], dtype: type = np.float64) -> np.ndarray:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)


def _a_turn(credit: Credit) -> Floats:
    """One number a turn: where each token has its own, the mean; with a mask, of those that are in the loss."""
    if isinstance(credit.advantage, np.ndarray):
        return credit.advantage.astype(np.float64)
    if credit.mask is None:
        return np.array([np.mean(values) for values in credit.advantage], dtype=np.float64)
    result = np.zeros(len(credit.turns))
    for t, (turn, mask) in enumerate(zip(credit.turns.turn, credit.mask, strict=True)):
        kept = mask if credit.inherited else over_sampled(turn, mask)
        values = np.asarray(credit.advantage[t])
        kept = kept[-len(values) :] if values.ndim else kept  # values of drawn tokens alone
        result[t] = np.mean(np.broadcast_to(values, kept.shape)[kept]) if kept.any() else 0.0
    return result


def _looked_up(batch: Batch, recorded: Recorded) -> Iterator[float]:
    for t, turn in enumerate(batch.turns.turn):
        key = (batch.episodes[batch.turns.episode[t]].id, turn.id)
        if key not in recorded:
            yield np.nan
            continue
        values = np.frombuffer(recorded[key], "<f4")  # nan: out of the loss
        yield float(values[0]) if len(values) == 1 else float(np.nanmean(values))


def _check_needs(steps: Sequence[Sequence[Group]], estimators: Sequence[Estimator]) -> None:
    """What an estimator asks to be recorded must be there; `agentrl.setup.check` asks the same of a run to come."""
    groups = [group for step in steps for group in step]
    turns = [turn for group in groups for episode in group.finished for turn in episode.turns]
    for estimator in estimators:
        needs = estimator.needs
        asked = turns if needs.probes else []
        recorded = {name for turn in asked for name in (*turn.columns, *(probe.name for probe in turn.probes))}
        lacking = [f"probe {probe!r}" for probe in needs.probes if probe not in recorded]
        stopped = sum(episode.status == "stopped" for group in groups for episode in group.finished)
        drawn_in_one_place = stopped and needs.stopped
        if needs.state and not drawn_in_one_place and not any(turn.state and turn.state.before for turn in turns):
            lacking.append("state keys")
        if needs.forks and not any(episode.fork_of for group in groups for episode in group.finished):
            lacking.append("episodes that branch")
        if stopped and not needs.stopped:
            lacking.append(f"whole episodes alone ({stopped} were stopped by their rollout plan)")
        largest = max((len(group.finished) for group in groups), default=0)
        if needs.group > largest:
            lacking.append(f"groups of {needs.group} (the largest has {largest} finished)")
        if turns and lacking:
            said = f"{called('estimator', estimator)} needs {', '.join(lacking)}, which these episodes lack"
            raise UserError(f"{said}; choose others, or another estimator")
