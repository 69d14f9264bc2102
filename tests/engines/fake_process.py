"""A fake SGLang as a process of its own, on a given port, that can be killed: `python fake_process.py PORT TOKEN_S`."""

from __future__ import annotations

import asyncio
import sys

from aiohttp import web

from agentrl.engines.sglang.fake import FakeSGLang


async def serve(port: int, token_s: float) -> None:
    async with FakeSGLang(token_s=token_s) as fake:
        assert fake._runner is not None
        await web.TCPSite(fake._runner, "127.0.0.1", port).start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), float(sys.argv[2])))
