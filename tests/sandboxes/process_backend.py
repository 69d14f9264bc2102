"""The real backend for the tests of `Process`: one a module, a fresh session a test. Skips, with why, where none can be."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from agentrl.errors import UserError
from agentrl.sandbox import Backend, SandboxLimits, Session
from agentrl_sandboxes.process import Process

LIMITS = SandboxLimits(memory_mb=128, processes=24, cpu_seconds=2, open_files=64, disk_mb=8, output=1 << 16, timeout=20)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend() -> AsyncIterator[Backend]:
    opening = Process(limits=LIMITS, warm=2).open()
    try:
        opened = await opening.__aenter__()
    except UserError as error:
        pytest.skip(str(error))
    yield opened
    await opening.__aexit__(None, None, None)


@pytest_asyncio.fixture(loop_scope="module")
async def session(backend: Backend) -> AsyncIterator[Session]:
    opened = await backend.session(LIMITS)
    yield opened
    await opened.close()
