"""The tasks of a backend, for as long as it is open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from agentrl.errors import capture


@asynccontextmanager
async def background() -> AsyncGenerator[asyncio.TaskGroup]:
    """A group of tasks; an error of the block leaves as it came, not as one of the group, once they have ended."""
    async with asyncio.TaskGroup() as tasks:
        with capture() as caught:
            yield tasks
    if caught.error is not None:
        raise caught.error
