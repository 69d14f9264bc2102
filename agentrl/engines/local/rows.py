"""The state of the running requests as arrays, one row each, rows 0..count-1 dense: a leaver's place goes to the last."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Matrix: TypeAlias = npt.NDArray[Any]
_GROW = 256


class Rows:
    """Numbers of up to `slots` requests.

    `length`: ids known; `done`: ids whose keys and values are in the cache; `start`: prompt ids (for scoring: the first id
    scored); `limit`: length at which the request ends; `wanted`: the first position whose log-prob is not yet known.
    """

    def __init__(self, slots: int) -> None:
        self.count = 0
        self.slots = slots
        self._whole = np.zeros((slots, 6), np.int64)
        columns: list[npt.NDArray[np.int64]] = list(self._whole.T)
        self.length, self.done, self.start, self.limit, self.wanted, self.top_k = columns
        self._reals = np.zeros((slots, 3))
        reals: list[npt.NDArray[np.float64]] = list(self._reals.T)
        self.temperature, self.top_p, self.entropy = reals
        self.seed = np.zeros(slots, np.uint64)
        self.greedy = np.zeros(slots, np.bool_)
        self.stop_ids = np.full((slots, 1), -1, np.int64)
        self.ids = np.zeros((slots, _GROW), np.int32)
        self.logprobs = np.zeros((slots, _GROW), np.float32)
        self.entropies = np.zeros((slots, _GROW), np.float32)

    def room(self, length: int, stop_ids: int) -> None:
        """Makes the matrices wide enough for `length` ids and a number of stop ids."""
        have = self.ids.shape[1]
        if length > have:
            more = max(length, have * 3 // 2) - have
            self.ids = np.pad(self.ids, ((0, 0), (0, more)))
            self.logprobs = np.pad(self.logprobs, ((0, 0), (0, more)))
            self.entropies = np.pad(self.entropies, ((0, 0), (0, more)))
        if stop_ids > self.stop_ids.shape[1]:
            wider = ((0, 0), (0, stop_ids - self.stop_ids.shape[1]))
            self.stop_ids = np.pad(self.stop_ids, wider, constant_values=-1)

    def move(self, source: int, target: int) -> None:
        """Copies everything of one row onto another."""
        self._whole[target] = self._whole[source]
        self._reals[target] = self._reals[source]
        self.seed[target], self.greedy[target] = self.seed[source], self.greedy[source]
        self.stop_ids[target] = self.stop_ids[source]
        used = self.length[source]
        for matrix in (self.ids, self.logprobs, self.entropies):
            matrix[target, :used] = matrix[source, :used]
