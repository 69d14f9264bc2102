"""The fake's end of a collective group for weights: rank 1, over gloo, in this process."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

SECONDS = 20


class Groups:
    """By name, as the real server keeps them."""

    def __init__(self) -> None:
        self._groups: dict[str, Any] = {}

    async def join(self, body: Mapping[str, Any]) -> None:
        """Returns when all ranks are there. `RuntimeError` when the store does not answer."""
        self._groups[body["group_name"]] = await asyncio.to_thread(_meet, body)

    def leave(self, name: str) -> bool:
        """False for a group that is not there."""
        return self._groups.pop(name, None) is not None

    async def receive(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The tensors that rank 0 broadcasts, by name. `KeyError` for a group that is not there."""
        group = self._groups[body["group_name"]]
        return await asyncio.to_thread(_receive, group, body["names"], body["dtypes"], body["shapes"])


def _meet(body: Mapping[str, Any]) -> Any:
    from torch import distributed

    patience, name = datetime.timedelta(seconds=SECONDS), body["group_name"]
    store = distributed.TCPStore(body["master_address"], body["master_port"], is_master=False, timeout=patience)
    for prefix in (name, f"{name}/", "cpu/"):
        store = distributed.PrefixStore(prefix, store)
    return distributed.ProcessGroupGloo(store, body["rank_offset"], body["world_size"], patience)


def _receive(group: Any, names: Sequence[str], dtypes: Sequence[str], shapes: Sequence[Sequence[int]]) -> dict[str, Any]:
    import torch

    options = torch.distributed.BroadcastOptions()
    options.rootRank = 0
    tensors = {
        name: torch.empty(*shape, dtype=getattr(torch, dtype)) for name, dtype, shape in zip(names, dtypes, shapes, strict=True)
    }
    for work in [group.broadcast([tensor], options) for tensor in tensors.values()]:
        work.wait()
    return tensors
