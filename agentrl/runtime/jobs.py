"""Calls of sync code in threads: who asks from a thread is told by the call that runs there, never by when it came."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from agentrl.runtime.branch import Branch


class Job:
    """One call of sync code by a workflow, in a thread. What the thread hands over to the loop is counted on its branch."""

    __slots__ = ("branch", "cancelled", "owner")

    def __init__(self, branch: Branch, owner: object) -> None:
        self.branch = branch
        self.owner = owner
        self.cancelled = False
        """The workflow waits for it no more: from then on it can hand nothing over, however far it has come by now."""

    def wrap(self, call: Callable[[], Any], ended: Callable[[Job], None]) -> Callable[[], Any]:
        """`call`, known in its thread as this job; `ended` is called there after it."""

        def run() -> Any:
            outer = job_here()
            _HERE.job = self
            try:
                return call()
            finally:
                _HERE.job = outer
                ended(self)

        return run


_HERE = threading.local()


def job_here() -> Job | None:
    """The job that runs in this thread."""
    return getattr(_HERE, "job", None)
