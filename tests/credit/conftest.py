from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from agentrl.episode import Episode, Group, Parent, Reward, Sampling, State, Turn, Version, VersionSpan, token_ids


def make_turn(name: str, index: int = 0, agent: str = "a", sampled: int = 2, **fields: Any) -> Turn:
    values: dict[str, Any] = {
        "id": name, "agent": agent, "index": index, "policy": "p",
        "versions": (VersionSpan(Version("run", "p", 0), 0, sampled),), "parent": None, "predecessor": None, "branch": "",
        "context_ids": token_ids([1, 2, 3]), "sampled_ids": token_ids(range(sampled)),
        "logprobs": np.zeros(sampled, np.float32),
        "logprobs_at": "before_mask", "finish": "stop", "sampling": Sampling(), "seed": 0, "text": "",
    }  # fmt: skip
    return Turn(**(values | fields))


def make_chain(
    name: str, group: str, rewards: Sequence[float], outcome: float = 0.0, states: Sequence[str] = (), **fields: Any
) -> Episode:
    """An episode of one agent: a turn for each number of `rewards` (its own reward), each going on from the last."""
    turns: list[Turn] = []
    for index, value in enumerate(rewards):
        parent = Parent(str(index - 1), 5 * index) if index else None
        own = (Reward("own", value, turn=str(index)),) if value else ()
        state = State(before=states[index]) if states else None
        turns.append(make_turn(str(index), index, parent=parent, rewards=own, state=state))
    end = (Reward("outcome", outcome),)
    values: dict[str, Any] = {
        "id": name, "group": group, "task": None, "seed": 0, "workflow": "", "source": "policy", "status": "done",
        "turns": tuple(turns), "rewards": end,
    }  # fmt: skip
    return Episode(**(values | fields))


def make_groups(episodes: Sequence[Episode], wanted: int = 0) -> list[Group]:
    """The episodes by the name of their group, in the order of first sight."""
    names = dict.fromkeys(episode.group for episode in episodes)
    members = {name: tuple(episode for episode in episodes if episode.group == name) for name in names}
    return [Group(name, None, found, max(wanted, len(found))) for name, found in members.items()]


@pytest.fixture(scope="session")
def turn() -> Callable[..., Turn]:
    return make_turn


@pytest.fixture(scope="session")
def chain() -> Callable[..., Episode]:
    return make_chain


@pytest.fixture(scope="session")
def grouped() -> Callable[..., list[Group]]:
    return make_groups
