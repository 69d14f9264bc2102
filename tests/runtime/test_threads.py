"""Threads for sync code: one call is never behind another that hangs, and none keeps the process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time

import pytest

from agentrl.errors import UserError
from agentrl.runtime.threads import DaemonThreads


async def test_results_and_errors_come_back() -> None:
    threads = DaemonThreads()
    assert await threads.run(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 // 0)
    threads.close()


async def test_what_a_future_cannot_carry_becomes_a_plain_error() -> None:
    threads = DaemonThreads()
    with pytest.raises(RuntimeError, match="StopIteration"):
        await threads.run(lambda: next(iter(())))
    with pytest.raises(RuntimeError, match=r"sys.exit\(3\)"):
        await threads.run(lambda: sys.exit(3))
    assert await threads.run(lambda: 1) == 1
    threads.close()


async def test_calls_run_at_the_same_time() -> None:
    threads = DaemonThreads()
    barrier = threading.Barrier(8, timeout=10)
    calls = [threads.run(barrier.wait) for _ in range(8)]
    assert sorted([await call for call in calls]) == list(range(8))
    threads.close()


async def test_no_call_waits_behind_one_that_hangs() -> None:
    threads = DaemonThreads(limit=4)
    release = threading.Event()
    assert await threads.run(lambda: 1) == 1  # a thread is idle now
    hung = threads.run(release.wait)
    assert [await threads.run(lambda n=n: n) for n in range(50)] == list(range(50))  # type: ignore[misc]
    release.set()
    assert await hung
    threads.close()


async def test_calls_beyond_the_limit_wait_in_line() -> None:
    threads = DaemonThreads(limit=2)
    release = threading.Event()
    busy = [threads.run(release.wait) for _ in range(2)]
    third = threads.run(lambda: "third")
    await asyncio.sleep(0.01)
    assert not third.done()
    release.set()
    assert await third == "third"
    assert all([await each for each in busy])
    threads.close()


async def test_hung_calls_that_nobody_waits_for_give_their_place_to_others() -> None:
    threads = DaemonThreads(limit=2)
    began, release = threading.Semaphore(0), threading.Event()

    def hang() -> None:
        began.release()
        release.wait()

    for _ in range(3):
        hung = [threads.run(hang) for _ in range(2)]
        for _ in hung:
            assert began.acquire(timeout=10)
        waiting = threads.run(lambda: 1)
        for each in hung:
            each.cancel()
        assert await waiting == 1
    release.set()
    threads.close()


async def test_a_call_cancelled_before_it_begins_never_runs() -> None:
    threads = DaemonThreads(limit=1)
    release, ran = threading.Event(), threading.Event()
    busy = threads.run(release.wait)
    never = threads.run(ran.set)
    never.cancel()
    await asyncio.sleep(0)
    release.set()
    await busy
    assert await threads.run(lambda: 5) == 5
    assert not ran.is_set()
    threads.close()


async def test_closed_threads_refuse() -> None:
    threads = DaemonThreads()
    threads.close()
    with pytest.raises(UserError, match="closed"):
        threads.run(lambda: 1)


async def test_many_calls_leave_few_threads() -> None:
    threads = DaemonThreads(limit=8)
    calls = [threads.run(lambda n=n: n) for n in range(500)]  # type: ignore[misc]
    assert [await call for call in calls] == list(range(500))
    assert sum(thread.name.startswith("agentrl-sync") and thread.is_alive() for thread in threading.enumerate()) <= 40
    threads.close()


def test_a_hung_call_does_not_keep_the_process() -> None:
    code = (
        "import asyncio, threading\n"
        "from agentrl.runtime.threads import DaemonThreads\n"
        "async def main():\n"
        "    threads = DaemonThreads()\n"
        "    began = threading.Event()\n"
        "    threads.run(lambda: (began.set(), threading.Event().wait()))\n"
        "    began.wait()\n"
        "    threads.close()\n"
        "asyncio.run(main())\n"
    )
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)
    assert time.monotonic() - began < 15
