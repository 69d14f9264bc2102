"""The few calls of Linux that the launcher needs and Python's library lacks."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from pathlib import Path

from agentrl_sandboxes.process.seccomp import MACHINES

NEW_MOUNTS, NEW_USERS, NEW_PROCESSES, NEW_NETWORK = 0x00020000, 0x10000000, 0x20000000, 0x40000000
BIND, RECURSIVE, PRIVATE, NO_SETUID, NO_DEVICES = 0x1000, 0x4000, 0x40000, 0x2, 0x4
PARENT_DIED = 1
"""PR_SET_PDEATHSIG"""
FIRST_USER = 200_000
SLOTS = 1 << 14
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(by: signal.Signals = signal.SIGTERM) -> None:
    """That signal when the parent dies."""
    _libc.prctl(PARENT_DIED, int(by), 0, 0, 0)


def unshare(flags: int) -> None:
    """`OSError` if the kernel refuses."""
    _checked(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """mount(2); `OSError` if the kernel refuses."""
    done = _libc.mount(
        source.encode(), os.fsencode(target), kind and kind.encode(), ctypes.c_ulong(flags), data.encode() or None
    )
    _checked(done, f"mount on {target}")


def _checked(answer: int, what: str) -> None:
    if answer:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


NOT_AS_USER = (
    "user {}: unprivileged user namespaces are off (sysctl user.max_user_namespaces=15000, kernel.unprivileged_userns_clone=1, "
    "kernel.apparmor_restrict_unprivileged_userns=0; in a container, docker run --security-opt seccomp=unconfined)"
)
NOT_AS_ROOT = (
    "root: CAP_SYS_ADMIN is missing (in a container, docker run --cap-add SYS_ADMIN --security-opt seccomp=unconfined, "
    "and --security-opt apparmor=unconfined where AppArmor is on)"
)


def seclude() -> str:
    """Gives this process mounts of its own and its children a process namespace: as root, else as root of a user namespace.

    Why it cannot, if it cannot.
    """
    user, group = os.getuid(), os.getgid()
    try:
        unshare(NEW_MOUNTS | NEW_PROCESSES | (NEW_USERS if user else 0))
        if user:
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        mount("none", "/", None, RECURSIVE | PRIVATE)
    except OSError as error:
        return f"no namespaces ({error}) for {NOT_AS_USER.format(user) if user else NOT_AS_ROOT}"
    _libc.syscall(MACHINES[os.uname().machine].denied["pivot_root"], b"", b"")
    if ctypes.get_errno() == errno.EPERM:  # not for these arguments: the call itself is denied, which bubblewrap needs
        return "pivot_root is denied (in a container, docker run --security-opt seccomp=unconfined)"
    return ""


def first_user() -> int:
    """Slot n runs as this user + n: users of no one, so that none starves another. 0: this process cannot become another.

    `OSError` if it is the machine's root, by whatever number, and can be nobody else: as root, /proc/sys would lie open.
    """
    begin, _, count = map(int, Path("/proc/self/uid_map").read_text().splitlines()[0].split())
    if count >= 2 * FIRST_USER:
        return FIRST_USER
    if count > SLOTS:
        return begin + count - SLOTS
    if os.stat("/proc").st_uid == os.getuid():  # the machine's root owns it, by whatever number that goes here
        raise PermissionError("this root has no other users to give the sandboxes; map 65536 of them into its namespace")
    return 0


def become(user: int) -> None:
    """That user and group, and no other groups."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
