"""The contract of sandboxes, claim by claim, as a user holds a backend of theirs to it."""

from __future__ import annotations

import pytest

from agentrl.testing import check_sandbox
from agentrl.testing.sandbox import CHECKS
from agentrl_sandboxes.docker import Docker


@pytest.mark.timeout(240)
@pytest.mark.parametrize("runtime", ["", "runsc"])
async def test_every_claim_holds(runtime: str) -> None:
    assert await check_sandbox(lambda: Docker(runtime=runtime, warm=2)) == tuple(CHECKS)
