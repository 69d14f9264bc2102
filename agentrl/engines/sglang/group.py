"""The trainer's side of a collective group with one server: rank 0, which broadcasts; the server's ranks receive.

The group is made of torch's process group classes alone, so no group that a learner has, nor its default group, is touched.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import secrets
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from agentrl.engines.http import Call
from agentrl.errors import EngineError, describe

if TYPE_CHECKING:
    from torch import Tensor

POLL_S = 0.001
GRACE_S = 2.0
"""The call to the server has the same deadline, and says more when it passes."""

log = logging.getLogger(__name__)


class UpdateGroup:
    """Joined before the first broadcast, and again after a failure. `host` is this machine as the server reaches it.

    `device` is the server's: a server on the CPU is reached by gloo, any other by NCCL from this process's current CUDA device.
    `ranks` are the server's; `join_s` bounds joining, `seconds` each broadcast.
    """

    def __init__(self, server: str, call: Call, *, host: str, device: str, ranks: int, join_s: float, seconds: float) -> None:
        self._server, self._call = server, call
        self._host, self._ranks, self._join_s, self._seconds = host, ranks, join_s, seconds
        self._backend = "gloo" if device == "cpu" else "nccl"
        self._group: Any = None
        self._store: Any = None
        self.name = ""

    async def join(self) -> None:
        """Returns when all ranks are there; does nothing when they are."""
        if self._group is not None:
            return
        self.name = f"agentrl-{secrets.token_hex(6)}"
        await asyncio.to_thread(self._listen)
        body = {
            "master_address": self._host, "master_port": self._store.port, "rank_offset": 1, "world_size": 1 + self._ranks,
            "group_name": self.name, "backend": self._backend,
        }  # fmt: skip
        joined = self._call("POST", "/init_weights_update_group", body, seconds=self._join_s)
        self._group = await self._beside(joined, asyncio.to_thread(self._meet), self._join_s)

    async def broadcast(self, tensors: Sequence[Tensor], told: Coroutine[Any, Any, None]) -> None:
        """Sends the tensors in this order while `told`, the call by which the server learns of them, runs."""

        async def send() -> None:
            works = await asyncio.to_thread(self._start, tensors)
            for work in works:
                while not work.is_completed():  # noqa: ASYNC110 - torch tells it in no other way
                    await asyncio.sleep(POLL_S)
                work.wait()  # raises what went wrong

        await self._beside(told, send(), self._seconds)

    async def leave(self) -> None:
        """Ends the group on both sides, as far as they still answer."""
        if self._group is None:
            return
        groups = [self._group]
        self._group = self._store = None
        try:  # the server first: what it has not received would keep this side waiting
            await self._call("POST", "/destroy_weights_update_group", {"group_name": self.name})
        except EngineError as error:
            log.warning("%s", error)
        finally:  # in a thread: while something is under way, the end of a group waits for it
            asyncio.get_running_loop().run_in_executor(None, groups.clear)

    async def _beside(self, call: Coroutine[Any, Any, Any], work: Coroutine[Any, Any, Any], seconds: float) -> Any:
        """Both at once; what `work` gives. When the call fails, what `work` waits for will never come."""
        try:
            async with asyncio.timeout(seconds + GRACE_S), asyncio.TaskGroup() as both:
                both.create_task(call)
                working = both.create_task(work)
        except* EngineError as errors:
            raise errors.exceptions[0] from errors
        except* (RuntimeError, ValueError, TimeoutError) as errors:
            raise EngineError(
                f"{self._server}: the group with it by {self._backend} failed: {describe(errors.exceptions[0])}; check that it "
                f"can reach {self._host}, the host of this trainer",
                retryable=True,
            ) from errors
        return working.result()

    def _listen(self) -> None:
        from torch.distributed import TCPStore

        self._store = TCPStore(
            self._host, 0, is_master=True, wait_for_workers=False, timeout=datetime.timedelta(seconds=self._join_s)
        )

    def _meet(self) -> Any:
        from torch import distributed

        device = "cpu" if self._backend == "gloo" else "cuda"
        # Under the keys at which torch's init_process_group, which the server calls, looks for its peers.
        store = self._store
        for prefix in (self.name, f"{self.name}/", f"{device}/"):
            store = distributed.PrefixStore(prefix, store)
        patience = datetime.timedelta(seconds=self._join_s + GRACE_S)
        if self._backend == "gloo":
            group = distributed.ProcessGroupGloo(store, 0, 1 + self._ranks, patience)
        else:
            options = distributed.ProcessGroupNCCL.Options()
            options._timeout = patience  # pyright: ignore[reportPrivateUsage] - it has no other setter
            group = distributed.ProcessGroupNCCL(store, 0, 1 + self._ranks, options)
        return group

    def _start(self, tensors: Sequence[Tensor]) -> list[Any]:
        from torch import distributed

        options = distributed.BroadcastOptions()
        options.rootRank, options.timeout = 0, datetime.timedelta(seconds=self._seconds + GRACE_S)
        on_device = [tensor if self._backend == "gloo" else tensor.cuda() for tensor in tensors]
        return [self._group.broadcast([tensor], options) for tensor in on_device]
