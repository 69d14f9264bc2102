"""Headless Chromium, driven over its DevTools protocol: a page opened, asked, clicked and photographed."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-port=0",
)  # fmt: skip


def found() -> str | None:
    """The browser on the path."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Browser:
    """One tab. `requests` are the addresses it asked for, `problems` what its console said and the exceptions it saw."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._replies: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._loaded: set[str] = set()
        self._heard = asyncio.Condition()
        self.requests: list[str] = []
        self.problems: list[str] = []

    async def listen(self) -> None:
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" in said:
                self._replies.pop(said["id"]).set_result(said)
            elif said["method"] == "Page.lifecycleEvent" and said["params"]["name"] == "load":
                async with self._heard:
                    self._loaded.add(said["params"]["loaderId"])
                    self._heard.notify_all()
            elif said["method"] == "Network.requestWillBeSent":
                self.requests.append(said["params"]["request"]["url"])
            elif said["method"] in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.problems.append(json.dumps(said["params"]))

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        reply = self._replies[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        said = await reply
        assert "error" not in said, f"{method}: {said['error']}"
        return said["result"]

    async def open(self, address: str, *, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        for domain in ("Page", "Network", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        await self.call("Page.setLifecycleEventsEnabled", enabled=True)
        await self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])
        await self._go("about:blank")  # a change of the fragment alone would load nothing
        self.requests.clear()
        await self._go(address)

    async def _go(self, address: str) -> None:
        said = await self.call("Page.navigate", url=address)
        assert "errorText" not in said, said
        async with self._heard:
            await self._heard.wait_for(lambda: said["loaderId"] in self._loaded)

    async def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression, evaluated by the debugger: no page's policy stands in its way."""
        said = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    async def click(self, selector: str) -> None:
        """A real press and release of the mouse in the middle of the first match."""
        found = json.dumps(selector)
        await self.ask(f"document.querySelector({found}).scrollIntoView({{block: 'center'}})")
        box = await self.ask(
            f"(b => [b.x + b.width / 2, b.y + b.height / 2])(document.querySelector({found}).getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    async def photograph(self) -> bytes:
        """What is to be seen, as PNG."""
        return base64.b64decode((await self.call("Page.captureScreenshot"))["data"])


@asynccontextmanager
async def browser(program: str, profile: Path) -> AsyncIterator[Browser]:
    """A browser with a new, empty profile; gone at the end."""
    process = await asyncio.create_subprocess_exec(
        program, *FLAGS, f"--user-data-dir={profile}", "about:blank",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        async with asyncio.timeout(60):
            while True:
                line = (await process.stderr.readline()).decode()
                assert line, "chromium ended before it listened"
                if line.startswith("DevTools listening on "):
                    break
        port = line.split("//")[1].split("/")[0]
        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:
            drained = tasks.create_task(process.stderr.read())
            async with session.get(f"http://{port}/json") as reply:
                (tab,) = [tab for tab in await reply.json() if tab["type"] == "page"]
            async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                opened = Browser(socket)
                listening = tasks.create_task(opened.listen())
                yield opened
                listening.cancel()
            drained.cancel()
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
