"""SGLang's own router as a child process: `smg`, once sglang-router. It deals requests out; we tell it which servers there are.

sglang-router 0.3.2, its last release under that name, rewrites a request and drops what it does not know, so the ids that the
server saw would not come back; smg 1.13 passes bodies on as they are. It keeps the requests of one session on one server by the
lineage of their ids: `SESSION_t7` belongs to SESSION. Its own health checks, retries and circuit breakers are off: a server
whose generation is paused does not answer /health, and who is lost or taken back is decided by who publishes weights.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from agentrl.engines.http import Body, Refused, Transport
from agentrl.engines.launch import Command, Server, free_port
from agentrl.errors import EngineError, UserError

OPTIONS = (
    "--policy", "round_robin", "--routing-key-override", "--assignment-mode", "min_load", "--disable-retries",
    "--disable-circuit-breaker", "--disable-health-check", "--disable-tokenizer-autoload", "--disable-load-monitoring",
    "--disable-worker-overload-protection", "--history-backend", "none", "--worker-startup-check-interval", "1",
    # A server that is paused, or in the middle of long replies, is not lost. Deadlines are the engine's.
    "--worker-wedge-secs", "1000000", "--worker-stale-secs", "0", "--request-timeout-secs", "1000000",
    "--stream-body-stall-timeout-secs", "0", "--log-level", "warn",
)  # fmt: skip
CALL_S = 10.0
CHANGE_S = 60.0
"""A server that leaves is kept in the router's list for five seconds, and cannot come back before it is off it."""
LOOK_AGAIN_S = 0.05


class Router:
    """`start` and `stop` it; in between `add` and `remove` servers."""

    def __init__(self, log: Path) -> None:
        if importlib.util.find_spec("smg") is None:
            raise UserError('several SGLang servers need their router; pip install "agentrl-runtime[router]"')
        port, metrics = free_port(), free_port()
        arguments = (
            sys.executable, "-m", "smg.launch_router", "--host", "127.0.0.1", "--port", str(port),
            "--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics), *OPTIONS,
        )  # fmt: skip
        # It holds no state, and would take five seconds to leave in good order.
        self.server = Server(Command("router", arguments, f"http://127.0.0.1:{port}", "/liveness", grace_s=0), log, start_s=60)
        self._http = Transport("the router", self.url, connect_s=5)
        self._changing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    @property
    def url(self) -> str:
        """Where requests go."""
        return self.server.url

    async def start(self) -> None:
        """Returns when it answers; it then knows no servers."""
        await self.server.start()
        await self._http.close()
        await self._http.open()

    async def stop(self) -> None:
        """Ends it at once."""
        await self._http.close()
        await self.server.stop()

    async def add(self, url: str) -> None:
        """Returns when requests may go to this server. It asks the server's /health, so that must not be paused."""
        async with self._changing[url], _within(f"the router did not take {url}; its log is {self.server.log}"):
            while (known := await self._known(url)) is None or known["status"] != "ready":
                if known is None:
                    try:
                        await self._call("POST", "/workers", {"url": url})
                    except Refused as error:
                        if error.status != 409:  # 409: it is still on the list
                            raise
                await asyncio.sleep(LOOK_AGAIN_S)

    async def remove(self, url: str) -> None:
        """Returns when no further request goes there; those that are there are not touched. Unknown ones are no error."""
        async with self._changing[url], _within(f"the router did not let go of {url}; its log is {self.server.log}"):
            known = await self._known(url)
            if known is not None and known["status"] != "draining":
                await self._call("DELETE", f"/workers/{known['id']}")
            while known is not None and known["status"] != "draining":
                await asyncio.sleep(LOOK_AGAIN_S / 5)
                known = await self._known(url)

    async def _known(self, url: str) -> dict[str, Any] | None:
        listed = await self._call("GET", "/workers")
        return next((worker for worker in listed["workers"] if worker["url"] == url), None)

    async def _call(self, method: str, path: str, body: Body | None = None) -> Any:
        try:
            return await self._http.call(method, path, body, deadline=asyncio.timeout(CALL_S), seconds=CALL_S)
        except Refused as error:
            if error.status != 202:  # accepted: it will be done
                raise


class _within:
    """`EngineError` with these words when the block takes longer than `CHANGE_S`."""

    def __init__(self, words: str) -> None:
        self._words, self._timeout = words, asyncio.timeout(CHANGE_S)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError as late:
            raise EngineError(f"{self._words} (waited {CHANGE_S:g} s)", retryable=True) from late
