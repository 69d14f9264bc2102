"""What the tests share: a backend for a module, claims that are made of every backend, what the engine still has."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Callable
from types import ModuleType
from typing import Any

import pytest_asyncio

from agentrl.sandbox import Backend, Session
from agentrl_sandboxes.docker import Docker
from tests.sandboxes.process_backend import LIMITS


def backend_of(runtime: str) -> Any:
    """The fixture `backend`."""

    @pytest_asyncio.fixture(scope="module", loop_scope="module")
    async def backend() -> AsyncIterator[Backend]:
        async with Docker(limits=LIMITS, runtime=runtime, warm=3).open() as opened:
            yield opened

    return backend


@pytest_asyncio.fixture(loop_scope="module")
async def session(backend: Backend) -> AsyncIterator[Session]:
    opened = await backend.session(LIMITS)
    yield opened
    await opened.close()


def claims(*modules: ModuleType, without: str) -> dict[str, Callable[..., Any]]:
    """The tests of these modules, to be run on the asking module's own `backend` and `session`."""
    left_out = without.split()
    found = {name: test for module in modules for name, test in vars(module).items() if name.startswith("test_")}
    assert set(left_out) <= set(found), f"no such tests: {set(left_out) - set(found)}"
    return {name: test for name, test in found.items() if name not in left_out}


def containers(label: str = "agentrl.owner") -> list[str]:
    """The names of all containers with a label, running or not."""
    listed = ["docker", "ps", "--all", "--filter", f"label={label}", "--format", "{{.Names}}"]
    return subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()
