"""Episodes as leaves of a tree."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from agentrl.episode import Episode, Group
from tests.credit.conftest import make_chain, make_turn


def make_leaf(name: str, path: Sequence[str], reward: float, of: str | None = None, group: str = "g", **fields: Any) -> Episode:
    """An episode with a turn for each name of `path`; equal beginnings of two paths are shared turns."""
    seeds = [zlib.crc32("/".join(path[: depth + 1]).encode()) for depth in range(len(path))]
    turns = tuple(make_turn(str(depth), depth, seed=seed, sampled=1) for depth, seed in enumerate(seeds))
    return replace(make_chain(name, group, [], outcome=reward), turns=turns, fork_of=of, **fields)


def one_group(episodes: Sequence[Episode], wanted: int = 0) -> list[Group]:
    return [Group(episodes[0].group, None, tuple(episodes), max(wanted, len(episodes)))]
