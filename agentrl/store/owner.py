"""Who writes: the identity of a writing process, whether it still lives, and the lock that keeps it alone on a file."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from agentrl.errors import RunLocked, StoreError


@dataclass(frozen=True, slots=True)
class Owner:
    """One open store of one process. `started` tells a process from a later one with the same pid; empty = unknown."""

    token: str
    host: str
    pid: int
    started: str


def this_owner() -> Owner:
    """A fresh identity for a store that this process opens."""
    pid = os.getpid()
    return Owner(secrets.token_hex(8), socket.gethostname(), pid, process_start(pid) or "")


def process_start(pid: int) -> str | None:
    """Boot id and start tick of a running process; None if there is none, or a zombie; "" where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "" if _exists(pid) else None
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # the name before may hold spaces and brackets
    return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def is_live(owner: Owner, expires: float) -> bool:
    """Whether `owner` may still write: on this host its process is asked for, elsewhere only the lease's expiry counts."""
    if owner.host == socket.gethostname():
        start = process_start(owner.pid)
        if start is None or (start and owner.started):
            return start is not None and start == owner.started
    return time.time() < expires


_held: dict[str, int] = {}
_held_lock = threading.Lock()


class FileLock:
    """Keeps other writers, of this and of other processes, off a file; the kernel frees it when the process dies.

    A POSIX record lock, so no child keeps it by inheritance. Such a lock is lost when its process closes any handle of the
    file, so a second attempt within the process is turned away by a table before it opens one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    def acquire(self, owner: Owner) -> None:
        """`RunLocked` naming the pid that holds it."""
        name = str(self.path)
        with _held_lock:
            if _held.get(name) == owner.pid:
                raise RunLocked(f"{self.path} is held by this process (pid {owner.pid}): the store is already open for writing")
            handle = self._open()
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = _read_holder(handle)
                os.close(handle)
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise StoreError(f"cannot lock {self.path}: {error}; its file system must support locks") from error
                raise RunLocked(
                    f"{self.path} is held by {holder}: another process writes this store; stop it, or open with read_only=True"
                ) from None
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps({"pid": owner.pid, "host": owner.host}).encode(), 0)
            _held[name] = owner.pid
            self._handle = handle

    def release(self) -> None:
        """Lets others in; the lock file stays, as removing it would race with one who opens it."""
        with _held_lock:
            if self._handle is not None:
                os.close(self._handle)
                self._handle = None
                _held.pop(str(self.path), None)

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreError(f"cannot open the lock file {self.path}: {error}") from error


def _read_holder(handle: int) -> str:
    try:
        holder = json.loads(os.pread(handle, 4096, 0))
    except ValueError:
        return "another process"
    return f"pid {holder['pid']} on {holder['host']}"
