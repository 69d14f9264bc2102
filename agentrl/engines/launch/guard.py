"""Runs a command and ends its whole process group when our parent is gone: `python guard.py GRACE_S COMMAND ...`.

The parent holds the other end of the pipe on standard input, and nothing is ever written to it. The kernel closes it however
the parent ends, by a SIGKILL too; so its end is the one sign to stop, in good order or not. The group then gets SIGTERM, and
SIGKILL after GRACE_S seconds. A command that ends by itself leaves no children behind, and its exit code is ours. Only the
standard library, for it starts once for every server.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time


def main(grace_s: float, command: list[str]) -> int:
    """The command's exit code; of one that a signal ended, 128 and the signal."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    for interrupt in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # after the start, or the command would inherit it
        signal.signal(interrupt, signal.SIG_IGN)

    def end() -> None:
        os.read(0, 1)
        _signal(child.pid, signal.SIGTERM)
        time.sleep(grace_s)
        _signal(child.pid, signal.SIGKILL)

    threading.Thread(target=end, daemon=True).start()
    code = child.wait()
    _signal(child.pid, signal.SIGKILL)
    return code if code >= 0 else 128 - code


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
