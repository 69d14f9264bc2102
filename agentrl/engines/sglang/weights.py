"""How new weights reach the server: as bytes over HTTP, through a folder, or by a collective group."""

from __future__ import annotations

import asyncio
import base64
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from agentrl.engines.folders import written
from agentrl.engines.http import Call, Refused
from agentrl.engines.sglang.group import UpdateGroup
from agentrl.errors import AgentRLError, EngineError

if TYPE_CHECKING:
    from torch import Tensor

Way: TypeAlias = Literal["tensors", "disk", "group"]
"""How tensors go: pickled over HTTP (crosses machines; one copy in the server's memory), as a safetensors file in a folder that
the server sees too, or broadcast by a process group (NCCL or gloo; the fastest between GPUs)."""

Tensors: TypeAlias = "Mapping[str, Tensor]"
Bucket: TypeAlias = "list[tuple[str, Tensor]]"


@dataclass(slots=True)
class Update:
    """One change of a server's weights. `begun` is what it was doing when the server may have come to hold a mixture."""

    server: str
    call: Call
    seconds: float
    version: str
    flush: bool
    """Not while running requests hold the cache: the flush would fail, and the server exits of that."""
    begun: str = ""

    @property
    def common(self) -> dict[str, Any]:
        """What every call says that changes weights."""
        return {"flush_cache": self.flush, "abort_all_requests": False}

    async def change(self, path: str, body: Mapping[str, Any]) -> None:
        """A call that changes weights."""
        self.begun = path
        self.succeeded(await self.call("POST", path, {**body, **self.common}, seconds=self.seconds))

    async def begin(self) -> None:
        """Opens the session that tensors need."""
        self.succeeded(await self.call("POST", "/begin_weight_update", {"selector": "all"}, seconds=self.seconds))

    async def end(self) -> None:
        """Closes it, also after a failure: it would be in the way of the next."""
        self.succeeded(await self.call("POST", "/end_weight_update", {}, seconds=self.seconds))

    def succeeded(self, reply: Any) -> None:
        """`EngineError` unless it did."""
        if not (isinstance(reply, dict) and reply.get("success") is True):  # pyright: ignore[reportUnknownMemberType]
            raise EngineError(f"{self.server}: the weight update did not succeed: {reply!r}")


async def send_folder(update: Update, folder: Path) -> None:
    """A folder of safetensors that the server sees under the same path."""
    try:
        await update.change("/update_weights_from_disk", {"model_path": str(folder), "weight_version": update.version})
    except Refused as error:
        if "Failed to get weights iterator" in error.reason:  # it could not open the folder, and kept its weights
            update.begun = ""
        raise


async def send_by_disk(update: Update, tensors: Tensors, exchange: str | Path | None) -> None:
    """Writes the tensors into a new folder below `exchange`, which is gone when the server has read it."""
    async with written(tensors, exchange) as folder:
        await send_folder(update, folder)


async def send_tensors(update: Update, tensors: Tensors, bucket_bytes: int, ranks: int) -> None:
    """Bucket by bucket over HTTP, one copy for each rank of the server."""

    async def send(bucket: Bucket, last: Mapping[str, Any]) -> None:
        payload = await asyncio.to_thread(serialize, bucket)
        await update.change("/update_weights_from_tensor", {"serialized_named_tensors": [payload] * ranks, **last})

    await _in_session(update, tensors, bucket_bytes, send)


async def send_by_group(update: Update, tensors: Tensors, bucket_bytes: int, group: UpdateGroup) -> None:
    """Bucket by bucket: the server is told what comes, and takes part in the broadcast of it."""
    await group.join()

    async def send(bucket: Bucket, last: Mapping[str, Any]) -> None:
        body = {
            "names": [name for name, _ in bucket],
            "dtypes": [str(tensor.dtype).removeprefix("torch.") for _, tensor in bucket],
            "shapes": [list(tensor.shape) for _, tensor in bucket],
            "group_name": group.name,
            **last,
        }
        await group.broadcast([tensor for _, tensor in bucket], update.change("/update_weights_from_distributed", body))

    try:
        await _in_session(update, tensors, bucket_bytes, send)
    except EngineError:
        await group.leave()  # broken, or no longer in step; the next publish joins a new one
        raise


async def _in_session(
    update: Update, tensors: Tensors, bucket_bytes: int, send: Callable[[Bucket, Mapping[str, Any]], Any]
) -> None:
    """`send` for every bucket; the last one names the version."""
    await update.begin()
    try:
        sent, remaining = 0, buckets(tensors, bucket_bytes)
        while (bucket := await asyncio.to_thread(next, remaining, None)) is not None:
            sent += len(bucket)
            await send(bucket, {"weight_version": update.version} if sent == len(tensors) else {})
    except AgentRLError:
        with suppress(EngineError):  # what went wrong first tells more
            await update.end()
        raise
    await update.end()


def buckets(tensors: Tensors, limit: int) -> Iterator[Bucket]:
    """The tensors in groups of at most `limit` bytes (a larger one stands alone), on the CPU, each with storage of its own."""
    bucket: Bucket = []
    size = 0
    for name, given in tensors.items():
        tensor = given.cpu()
        nbytes = tensor.numel() * tensor.element_size()
        if bucket and size + nbytes > limit:
            yield bucket
            bucket, size = [], 0
        # A view would be pickled with the whole storage that it looks into.
        bucket.append((name, tensor.contiguous() if tensor.untyped_storage().nbytes() == nbytes else tensor.clone()))
        size += nbytes
    if bucket:
        yield bucket


def serialize(bucket: Bucket) -> str:
    """A plain pickle in base64: needs no sglang here and no shared memory, so it crosses machines."""
    return base64.b64encode(pickle.dumps(bucket, protocol=4)).decode()
