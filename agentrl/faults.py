"""Named moments at which a test kills the process, to show that nothing is lost.

`AGENTRL_FAULT=store.mid_commit:3` ends the process by SIGKILL the third time that point is passed. Without the variable a
point costs one comparison.
"""

from __future__ import annotations

import os
import signal

_armed: list[tuple[str, int]] = []
_passed: dict[str, int] = {}


def arm(spec: str) -> None:
    """`name` or `name:count`; empty disarms."""
    _armed.clear()
    _passed.clear()
    if spec:
        name, _, count = spec.partition(":")
        _armed.append((name, int(count or 1)))


def point(name: str) -> None:
    """A moment that may be the last."""
    if not _armed:
        return
    wanted, count = _armed[0]
    if name == wanted:
        _passed[name] = _passed.get(name, 0) + 1
        if _passed[name] == count:
            os.kill(os.getpid(), signal.SIGKILL)


arm(os.environ.get("AGENTRL_FAULT", ""))
