"""`check_sandbox` can fail: what isolates nothing breaks the claims that say so. `test_docs.py` holds it for `Process`."""

from __future__ import annotations

import asyncio

import pytest

from agentrl.errors import UserError
from agentrl.sandbox import SandboxLimits
from agentrl.testing import SandboxNonconforming, check_sandbox
from agentrl.testing.sandbox import CHECKS
from agentrl.testing.sandbox_isolation import ISOLATION_CHECKS
from agentrl_sandboxes.process import Process


async def test_what_isolates_nothing_breaks_each_claim_of_isolation() -> None:
    names = {check.__name__ for check in ISOLATION_CHECKS}
    large = SandboxLimits(memory_mb=1 << 20)
    with pytest.warns(RuntimeWarning, match="isolates NOTHING"), pytest.raises(SandboxNonconforming) as raised:
        await check_sandbox(lambda: Process(unsafe_local=True, limits=large), only=names)
    assert {one.name for one in raised.value.broken} == names
    assert f"Process breaks {len(names)} of {len(names)} claims of the sandbox contract" in str(raised.value)
    for one in raised.value.broken:
        assert one.claim
        assert one.seen


async def test_limits_that_are_not_kept_are_told_by_name() -> None:
    claims = ("the_disk_is_bounded", "output_of_both_streams_is_bounded")
    small = SandboxLimits(memory_mb=1 << 20, disk_mb=1, output=1000)
    with pytest.warns(RuntimeWarning), pytest.raises(SandboxNonconforming, match="with a limit of 1 MB") as raised:
        await check_sandbox(lambda: Process(unsafe_local=True), only=claims, small=small)
    assert [one.name for one in raised.value.broken] == ["the_disk_is_bounded"]


async def test_a_claim_that_takes_too_long_is_broken() -> None:
    large = SandboxLimits(memory_mb=1 << 20)
    with pytest.warns(RuntimeWarning), pytest.raises(SandboxNonconforming, match=r"nothing within 0\.05 s"):
        await check_sandbox(lambda: Process(unsafe_local=True, limits=large), only=["a_timeout_is_a_result"], patience_s=0.05)


async def test_only_and_skip_choose() -> None:
    large = SandboxLimits(memory_mb=1 << 20)
    chosen = {"an_argv_is_taken_as_it_is", "a_signal_is_a_negative_status"}
    with pytest.warns(RuntimeWarning):
        held = await check_sandbox(
            lambda: Process(unsafe_local=True, limits=large), only=chosen, skip=["a_signal_is_a_negative_status"]
        )
    assert held == ("an_argv_is_taken_as_it_is",)


async def test_a_check_that_there_is_not_is_refused() -> None:
    with pytest.raises(UserError, match="no sandbox check is called no_such"):
        await check_sandbox(Process, only=["no_such"])


def test_each_claim_is_said_in_words() -> None:
    assert all((check.__doc__ or "").strip().endswith(".") and asyncio.iscoroutinefunction(check) for check in CHECKS.values())
    assert len(CHECKS) == 50
