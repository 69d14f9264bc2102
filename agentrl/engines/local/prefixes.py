"""Which contexts are already computed: finished ones, kept as copies, and running ones.

Keyed by content, in blocks of 16 tokens whose hashes are chained, so that a look-up costs one dict access a block. Only
contexts computed wholly by the weights that serve now are in it; new weights empty it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from torch import Tensor

from agentrl.episode import IntArray

BLOCK = 16


@dataclass(eq=False)
class Kept:
    """A finished context: its ids and a copy of its keys and values [layers, 2, len(ids), kv]."""

    ids: IntArray
    kv: Tensor
    hashes: list[int] = field(default_factory=list)


Source: TypeAlias = "Kept | int"
"""A kept context, or the key of a running one."""


def chain(ids: IntArray) -> list[int]:
    """One hash per whole block, each over all blocks up to it."""
    data, size = np.ascontiguousarray(ids).tobytes(), BLOCK * ids.itemsize
    hashes: list[int] = []
    last: Hashable = 0
    for start in range(0, len(data) - size + 1, size):
        last = hash((last, data[start : start + size]))
        hashes.append(last)
    return hashes


def shared(one: IntArray, two: IntArray) -> int:
    """Length of the longest common prefix."""
    size = min(len(one), len(two))
    differ = one[:size] != two[:size]
    return int(differ.argmax()) if differ.any() else size


class Prefixes:
    """At most `limit` tokens of kept contexts, the least recently used dropped first; running ones cost nothing."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.tokens = 0
        self._kept: OrderedDict[int, Kept] = OrderedDict()
        self._at: dict[int, Source] = {}

    def find(self, hashes: list[int]) -> Source | None:
        """The context that shares the most blocks; the caller compares the ids themselves."""
        source: Source | None = None
        for each in hashes:
            found = self._at.get(each)
            if found is None:
                break
            source = found
        if isinstance(source, Kept):
            self._kept.move_to_end(id(source))
        return source

    def add_running(self, key: int, hashes: list[int]) -> None:
        """Announces a running context, so that siblings wait for it instead of computing the same again."""
        for each in hashes:
            if not isinstance(self._at.get(each), Kept):
                self._at[each] = key

    def drop_running(self, key: int, hashes: list[int]) -> None:
        """Withdraws what `add_running` announced."""
        for each in hashes:
            if self._at.get(each) == key:
                del self._at[each]

    def keep(self, kept: Kept, instead: Source | None) -> None:
        """Keeps a finished context; `instead` names the one that it goes on from, which is dropped when contained."""
        if len(kept.ids) > self.limit:
            return
        contained = (
            isinstance(instead, Kept) and id(instead) in self._kept and shared(instead.ids, kept.ids) == len(instead.ids)
        )
        if contained:
            assert isinstance(instead, Kept)
            self._drop(instead)
        kept.hashes = chain(kept.ids)
        self._kept[id(kept)] = kept
        self.tokens += len(kept.ids)
        for each in kept.hashes:
            self._at[each] = kept
        while self.tokens > self.limit:
            self._drop(next(iter(self._kept.values())))

    def clear(self) -> None:
        """Forgets everything: the weights changed."""
        self._kept.clear()
        self._at.clear()
        self.tokens = 0

    def _drop(self, kept: Kept) -> None:
        del self._kept[id(kept)]
        self.tokens -= len(kept.ids)
        for each in kept.hashes:
            if self._at.get(each) is kept:
                del self._at[each]
