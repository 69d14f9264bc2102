"""Groups through transforms, one after the other; nothing but rewards may change, or a replayed success take a place."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from agentrl.episode import Episode, Group, Reward, Turn
from agentrl.errors import UserError, capture
from agentrl.transforms.contract import RewardTransform
from agentrl.transforms.culprit import called, failed

_OF_TURN = tuple(field.name for field in fields(Turn) if field.name != "rewards")
_OF_EPISODE = tuple(field.name for field in fields(Episode) if field.name not in ("turns", "rewards"))


def transformed(groups: Sequence[Group], transforms: Sequence[RewardTransform]) -> list[Group]:
    """The groups with the rewards that the transforms make of them, in order.

    `UserError` for a transform that raises, gives another group, changes more than rewards or gives one that is not finite.
    """
    result = list(groups)
    for transform in transforms:
        result = [_one(group, transform) for group in result]
    return result


def _one(group: Group, transform: RewardTransform) -> Group:
    changed: Any = None
    with capture() as caught:
        changed = transform(group)
    if caught.error is not None:
        raise failed("transform", transform, caught.error, f" on group {group.id}") from caught.error
    name = called("transform", transform)
    if not isinstance(changed, Group):
        raise UserError(f"{name} gave a {type(changed).__name__} for group {group.id}, wanted the Group with other rewards")
    for said in _wrong(group, changed):
        raise UserError(f"{name}: {said}; give dataclasses.replace(group, episodes=...) with other rewards and nothing else")
    return changed


def _wrong(group: Group, changed: Group) -> Iterator[str]:
    """What is not as it should be."""
    before, after = ([episode.id for episode in each.episodes] for each in (group, changed))
    for at, (old, new) in enumerate(zip(group.episodes, changed.episodes, strict=False)):
        if _replayed(old, new):
            after[at] = old.id
    if changed.id != group.id or changed.wanted != group.wanted:
        yield f"group {group.id} (of {group.wanted}) came back as {changed.id} (of {changed.wanted})"
    elif after != before:
        other = next((f"{a} for {b}" for a, b in zip(after, before, strict=False) if a != b), f"{len(after)} for {len(before)}")
        yield f"group {group.id} came back with other episodes ({other})"
    else:
        for old, new in zip(group.episodes, changed.episodes, strict=True):
            if new is not old:
                yield from _changes(new if _replayed(old, new) else old, new)


def _replayed(old: Episode, new: Episode) -> bool:
    """Whether a stored success stands in a member's place, as `RewardTransform` allows."""
    return new.source == "replay" and new.id != old.id


def _changes(old: Episode, new: Episode) -> Iterator[str]:
    # by identity: `replace` keeps every field that it is not given, and arrays have no `==`
    names = [name for name in _OF_EPISODE if getattr(new, name) is not getattr(old, name)]
    if len(new.turns) != len(old.turns):
        names.append("turns")
    if names:
        yield f"episode {old.id} came back with another {names[0]}"
        return
    yield from _not_finite(new.rewards, f"episode {old.id}")
    for before, after in zip(old.turns, new.turns, strict=True):
        if after is not before:
            where = f"turn {before.id} of episode {old.id}"
            yield from (f"{where} came back with another {n}" for n in _OF_TURN if getattr(after, n) is not getattr(before, n))
            yield from _not_finite(after.rewards, where)


def _not_finite(rewards: Sequence[Reward], where: str) -> Iterator[str]:
    for reward in rewards:
        if not math.isfinite(reward.value):
            yield f"reward {reward.name!r} of {where} is {reward.value}"
