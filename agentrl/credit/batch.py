"""Groups to a batch: the turns of one learner step as columns."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TypeAlias

import numpy as np

from agentrl.credit.contract import Batch, Floats, Ints, TurnColumns
from agentrl.episode import Episode, Group, Turn
from agentrl.errors import UserError

MASKED = "masked"
"""Key in `Batch.extras`: bool (T,), true for turns that are in the statistics and are not trained (overlong episodes)."""

_Amounts: TypeAlias = tuple[float, float]
"""All that a turn was given, and the part of it that was given to an agent."""


def to_batch(groups: Sequence[Group], *, policies: Collection[str] | None = None, train_overlong: bool = False) -> Batch:
    """The columns of these groups, in order of group, episode, turn.

    Episodes that failed, were cancelled, went over budget or diverged are out: they are counted as lost and are in no
    statistic. Overlong ones stay in every statistic; their turns are trained only with `train_overlong`. Of the others come
    all turns that may be trained, of the given policies (None = all). Rewards without a turn of their own here find one: an
    agent's end rewards its last turn, those of an untrained turn the last one before it (the same agent's, if given to an
    agent). `UserError` for a reward that is not finite, and for a group or an episode that occurs twice
    (a replayed one may).
    """
    finished = [(index, episode) for index, group in enumerate(groups) for episode in group.finished]
    _check_names([group.id for group in groups], "group")
    _check_names([episode.id for _, episode in finished if episode.source != "replay"], "episode")
    asked = sum(max(group.wanted, len(group.episodes)) for group in groups)
    turns: list[Turn] = []
    rows: list[tuple[int, int]] = []
    rewards: list[_Amounts] = []
    for number, (group_index, episode) in enumerate(finished):
        kept = [turn for turn in episode.turns if turn.trainable and (policies is None or turn.policy in policies)]
        turns.extend(kept)
        rows.extend((number, group_index) for _ in kept)
        rewards.extend(_turn_rewards(episode, kept))
    episodes = tuple(episode for _, episode in finished)
    names = tuple(dict.fromkeys(turn.agent for turn in turns))
    columns = _columns(turns, rows, rewards, episodes, names)
    overlong = np.array([episode.status == "overlong" for episode in episodes], dtype=np.bool_)
    masked = overlong[columns.episode] & (not train_overlong)
    return Batch(tuple(groups), episodes, columns, names, lost=asked - len(episodes), extras={MASKED: masked})


def _columns(
    turns: Sequence[Turn],
    rows: Sequence[tuple[int, int]],
    rewards: Sequence[_Amounts],
    episodes: Sequence[Episode],
    names: Sequence[str],
) -> TurnColumns:
    episode: Ints = np.array([row[0] for row in rows], dtype=np.int64)
    outcomes: Floats = np.array([_finite(item.reward, item, "its team") for item in episodes], dtype=np.float64)
    agents = {name: index for index, name in enumerate(names)}
    states: dict[str, int] = {}
    last = np.ones(len(turns), dtype=np.bool_)
    last[:-1] = episode[1:] != episode[:-1]
    return TurnColumns(
        turn=tuple(turns),
        episode=episode,
        group=np.array([row[1] for row in rows], dtype=np.int64),
        agent=np.array([agents[turn.agent] for turn in turns], dtype=np.int64),
        index=np.array([turn.index for turn in turns], dtype=np.int64),
        state=_keys([turn.state.before if turn.state is not None else "" for turn in turns], states),
        action=_keys([turn.state.action if turn.state is not None else "" for turn in turns], {}),
        after=_keys([turn.state.after if turn.state is not None else "" for turn in turns], states),
        reward=np.array([amounts[0] for amounts in rewards], dtype=np.float64),
        outcome=outcomes[episode],
        last=last,
        valid=np.array([turn.valid for turn in turns], dtype=np.bool_),
        length=np.array([len(turn.sampled_ids) - turn.forced for turn in turns], dtype=np.int64),
        local=np.array([amounts[1] for amounts in rewards], dtype=np.float64),
    )


def _keys(names: Sequence[str | None], index: dict[str, int]) -> Ints:
    """The index of each key, new ones numbered as they come; -1 - t where turn t has none."""
    return np.array([index.setdefault(key, len(index)) if key else -1 - t for t, key in enumerate(names)], dtype=np.int64)


def _turn_rewards(episode: Episode, kept: Sequence[Turn]) -> list[_Amounts]:
    """What each kept turn was given; see `to_batch` for where the rewards of no kept turn go."""
    amounts, local = [0.0] * len(kept), [0.0] * len(kept)
    place = {turn.id: index for index, turn in enumerate(kept)}
    latest: dict[str | None, int] = {}  # agent (None = anyone) -> its last kept turn so far
    for turn in episode.turns:
        if turn.id in place:
            latest[turn.agent] = latest[None] = place[turn.id]
        for reward in turn.rewards:
            value = _finite(reward.value, episode, f"turn {turn.id}")
            at = place.get(turn.id, latest.get(reward.agent))
            if at is not None:
                amounts[at] += value
                local[at] += value if reward.agent is not None else 0.0
    for reward in episode.rewards:
        if reward.agent is not None and reward.agent in latest:
            value = _finite(reward.value, episode, f"agent {reward.agent}")
            amounts[latest[reward.agent]] += value
            local[latest[reward.agent]] += value
    return list(zip(amounts, local, strict=True))


def _finite(value: float, episode: Episode, what: str) -> float:
    if not math.isfinite(value):
        raise UserError(f"episode {episode.id}: a reward of {what} is {value}; rewards must be finite numbers: mend the reward")
    return value


def _check_names(names: Sequence[str], what: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise UserError(f"{what} {twice[0]} occurs {names.count(twice[0])} times in the batch; give each {what} once")
