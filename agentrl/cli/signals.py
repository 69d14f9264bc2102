"""Ctrl-C and SIGTERM: once, the work comes to its own end; twice, at once."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")

INTERRUPTED, TERMINATED = 130, 143
_LAST_CALL = 3.0
"""Seconds that cleanup may take after a second Ctrl-C."""


def interruptible(
    work: Callable[[asyncio.Event], Coroutine[Any, Any, ResultT]], say: Callable[[str], None]
) -> tuple[int, ResultT | None]:
    """Runs `work(stop)`; gives the exit code and what it gave.

    The first Ctrl-C (or SIGTERM) sets `stop`, so that `work` may come to an end by itself; the second ends it at once.
    """
    codes: list[int] = []

    async def run() -> ResultT:
        stop, loop, task = asyncio.Event(), asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def pressed(code: int) -> None:
            codes.append(code)
            if len(codes) == 1:
                stop.set()
                say("stopping: the step under way is finished and saved; Ctrl-C again stops at once")
            else:
                say("stopped at once; the same command goes on from what is stored")
                # a computation in a thread cannot be cancelled; the store bears the end of the process at any moment
                last = threading.Timer(_LAST_CALL, os._exit, (codes[0],))
                last.daemon = True
                last.start()
                task.cancel()

        signals = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}
        for number, code in signals.items():
            loop.add_signal_handler(number, pressed, code)
        try:
            return await work(stop)
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    try:
        result = asyncio.run(run())
    except asyncio.CancelledError:
        return codes[0] if codes else INTERRUPTED, None
    return (codes[0] if codes else 0), result
