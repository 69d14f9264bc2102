"""`FleetTransport`: what one SGLang server would be sent, sent to several.

    /generate       to the router; sent again, to another server, when the one that had it is lost
    GET             to the first that answers
    all else        to every server at once; one that fails where another succeeds is dropped

A reply counts when it is whole and of weights that the fleet served while it ran. A request is lost with its server, when an
abort ended it that nobody asked for, or when a server that was restarted unseen answered with its start-up weights; then it is
sent again as it was, under its own deadline.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from agentrl.engines.fleet.router import Router
from agentrl.engines.http import Body, Refused, Transport
from agentrl.engines.launch import Server
from agentrl.errors import EngineAborted, EngineError

log = logging.getLogger(__name__)

SESSION: ContextVar[str] = ContextVar("session", default="")
"""The session of the request that the current task sends."""

PROBE_S = 5.0
SEND_AGAIN_S = 0.2
READS = ("/v1/tokenize",)
WHILE_NONE_LIVES = ("/pause_generation", "/continue_generation", "/abort_request")
"""Hold trivially when no server is there."""


@dataclass(eq=False)
class Member:
    """A server of the fleet; `server` is its process if we launched it."""

    url: str
    http: Transport
    server: Server | None = None
    live: bool = True
    missed: int = 0
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when somebody should look after it."""


class FleetTransport(Transport):
    """See the module. `router=None`: the only member is sent its requests directly."""

    def __init__(self, members: Sequence[Member], router: Router | None, *, connect_s: float) -> None:
        super().__init__("SGLang", router.url if router else members[0].url, connect_s=connect_s)
        self.name = f"the fleet of {len(members)} SGLang servers at {self.url}"
        self.members, self.router = tuple(members), router
        self.current = ""
        """The weight version that every live member serves."""
        self._versions: list[str] = []
        self._turns = itertools.count(1)
        self._sent: dict[str, str] = {}
        self._open: set[str] = set()
        self._aborted: set[str] = set()
        self._abort_pauses = 0
        self._routable = False
        self._news = asyncio.Condition()
        """A member came back, or a request was aborted."""

    @property
    def live(self) -> list[Member]:
        """Those that control calls go to."""
        return [member for member in self.members if member.live]

    async def open(self) -> None:
        """Connections to the router and to every member."""
        await super().open()
        for member in self.members:
            await member.http.open()

    async def close(self) -> None:
        """Closes all of them."""
        for member in self.members:
            await member.http.close()
        await super().close()

    async def call(self, method: str, path: str, body: Body | None = None, *, deadline: asyncio.Timeout, seconds: float) -> Any:
        """See the module. Only a generation's `deadline` may be moved."""
        if path == "/generate":
            assert body is not None
            return await self._generate(body, deadline, seconds)
        if method == "GET" or path in READS:
            return await self._first(method, path, body, seconds)
        if path == "/abort_request" and body is not None:
            body = await self._to_abort(str(body["rid"]))
        elif path == "/pause_generation" and body is not None:
            self._abort_pauses += body["mode"] == "abort"
        elif body is not None and "weight_version" in body:
            self._versions.append(str(body["weight_version"]))
        return await self._everywhere(method, path, body, seconds)

    # --- members -----------------------------------------------------------------------------------------------------------
    async def drop(self, member: Member, why: object) -> None:
        """Returns when no further request and no control call goes there. What it still runs is lost."""
        if member.live:
            member.live, member.missed = False, 0
            log.warning("%s is dropped from the fleet, %d are left: %s", member.url, len(self.live), why)
            member.wake.set()
        if not self.live:
            self._routable = False
        if self.router is not None:
            with suppress(EngineError):  # a router that is gone forgets its servers
                await self.router.remove(member.url)

    async def take(self, member: Member) -> None:
        """The reverse, for a member that serves the current weights."""
        member.live = True
        if self.router is not None:
            await self.router.add(member.url)
        self._routable = True
        async with self._news:
            self._news.notify_all()

    async def probe(self, member: Member) -> str:
        """The weight version that it serves. Not by /health, which waits while generation is paused."""
        return str((await self.ask(member, "GET", "/model_info"))["weight_version"])

    async def calm(self, member: Member) -> None:
        """Ends what a dropped member was in the middle of, as far as it answers."""
        for path, body in (
            ("/abort_request", {"rid": "", "abort_all": True}),
            ("/end_weight_update", {}),
            ("/continue_generation", {}),
        ):
            with suppress(EngineError):
                await self.ask(member, "POST", path, body)

    async def some(self, seconds: float) -> None:
        """Returns when some member can take requests."""
        try:
            async with asyncio.timeout(seconds), self._news:
                await self._news.wait_for(lambda: self._routable)
        except TimeoutError as error:
            raise EngineError(
                f"{self.name}: no server came back within {seconds:g} s; look at their logs", retryable=True
            ) from error

    async def ask(self, member: Member, method: str, path: str, body: Body | None = None, seconds: float | None = None) -> Any:
        """One call of one member."""
        seconds = PROBE_S if seconds is None else seconds
        return await member.http.call(method, path, body, deadline=asyncio.timeout(seconds), seconds=seconds)

    # --- control -----------------------------------------------------------------------------------------------------------
    async def _first(self, method: str, path: str, body: Body | None, seconds: float) -> Any:
        for member in self.live:
            try:
                return await self.ask(member, method, path, body, seconds)
            except Refused:
                raise
            except EngineError as error:
                await self.drop(member, error)
        raise self._none_lives(path)

    async def _everywhere(self, method: str, path: str, body: Body | None, seconds: float) -> Any:
        asked = self.live
        replies: list[Any] = []
        failed: dict[Member, EngineError] = {}

        async def ask(member: Member) -> None:
            try:
                reply = await self.ask(member, method, path, body, seconds)
                if isinstance(reply, dict) and reply.get("success") is False:
                    raise Refused(f"{member.http.name}: {method} {path} did not succeed: {reply}", 400, str(reply))
                replies.append(reply)
            except EngineError as error:
                failed[member] = error

        async with asyncio.TaskGroup() as group:
            for member in asked:
                group.create_task(ask(member))
        if replies:
            await self._drop_all(failed)
            return replies[0]
        if not asked and path in WHILE_NONE_LIVES:
            return None
        await self._drop_all({one: error for one, error in failed.items() if not isinstance(error, Refused)})
        raise self._all_failed(path, failed)

    async def _drop_all(self, failed: dict[Member, EngineError]) -> None:
        async with asyncio.TaskGroup() as group:
            for member, error in failed.items():
                group.create_task(self.drop(member, error))

    def _all_failed(self, path: str, failed: dict[Member, EngineError]) -> EngineError:
        if not failed:
            return self._none_lives(path)
        causes = "; ".join(map(str, failed.values()))
        refused = [error for error in failed.values() if isinstance(error, Refused)]
        if len(refused) == len(failed):
            return Refused(causes, refused[0].status, refused[0].reason)
        return EngineError(f"{self.name}: {path} failed everywhere: {causes}", retryable=True)

    def _none_lives(self, path: str) -> EngineError:
        return EngineError(f"{self.name}: {path}: none of its servers answers now; look at their logs", retryable=True)

    async def _to_abort(self, rid: str) -> Body:
        if rid in self._open:
            self._aborted.add(rid)
            async with self._news:
                self._news.notify_all()
            return {"rid": self._sent.get(rid, rid)}
        return {"rid": self._sent.pop(rid, rid)}

    # --- generations -------------------------------------------------------------------------------------------------------
    async def _generate(self, body: Body, deadline: asyncio.Timeout, seconds: float) -> Any:
        rid, session = str(body["rid"]), SESSION.get() or str(body["rid"])
        since, pauses = max(0, len(self._versions) - 1), self._abort_pauses
        served = {self.current}
        self._open.add(rid)
        try:
            async with deadline:
                while True:
                    async with self._news:
                        await self._news.wait_for(lambda: self._routable or rid in self._aborted)
                    if rid in self._aborted:
                        raise EngineAborted(f"{self.name}: request {rid} was aborted")
                    self._sent[rid] = f"{session}_t{next(self._turns)}"
                    reply = await self._attempt({**body, "rid": self._sent[rid]}, seconds)
                    ended_by_us = rid in self._aborted or pauses != self._abort_pauses
                    if reply is not None and await self._counts(reply, served.union(self._versions[since:]), ended_by_us):
                        self._sent.pop(rid, None)
                        return reply
        except TimeoutError as error:
            raise EngineError(
                f"{self.name}: a request had no reply within {seconds:g} s; look at the servers' logs, or allow it more time",
                retryable=True,
            ) from error
        finally:
            self._open.discard(rid)
            self._aborted.discard(rid)

    async def _attempt(self, body: Body, seconds: float) -> Any:
        """The reply; None when it was lost on the way and may be asked for again."""
        try:
            return await super().call("POST", "/generate", body, deadline=asyncio.timeout(None), seconds=seconds)
        except Refused as error:
            at_fault = next((member for member in self.members if f"{member.url}/" in error.reason), None)
            if at_fault is not None:
                await self.drop(at_fault, error)
            elif self.router is None or error.status not in (404, 503) or "/generate" in error.reason:
                raise
            else:  # the router has no server just now
                await asyncio.sleep(SEND_AGAIN_S)
        except EngineError as error:
            if not error.retryable:
                raise
            if self.router is None:
                await self.drop(self.members[0], error)
            else:  # the router itself; whoever looks after the members starts it again
                for member in self.members:
                    member.wake.set()
                await asyncio.sleep(SEND_AGAIN_S)
        return None

    async def _counts(self, reply: Any, served: set[str], ended_by_us: bool) -> bool:
        if not isinstance(reply, dict) or "meta_info" not in reply:
            return True  # its reader says what is wrong
        meta: Any = reply["meta_info"]
        if meta["finish_reason"]["type"] == "abort" and not meta["finish_reason"].get("status_code") and not ended_by_us:
            return False
        return meta["weight_version"] in served or not await self._drop_stale()

    async def _drop_stale(self) -> bool:
        """Drops who serves other weights than the fleet's; whether there was one."""
        found = False
        for member in self.live:
            try:
                told = await self.probe(member)
            except EngineError as error:
                told = str(error)
            if told not in (self.current, *self._versions[-1:]):
                found = True
                await self.drop(member, f"it serves {told}, not {self.current}; was it restarted?")
        return found
