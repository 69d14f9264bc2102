"""The system calls that a sandbox may not make: a classic BPF program, assembled by hand.

What is not named passes, for compilers, interpreters and package managers need most of the rest; numbers above the last known
one answer ENOSYS, as on an older kernel, so that a call of tomorrow is not let through. seccomp(2); the layout of the program's
input is `struct seccomp_data`: number, architecture, instruction pointer, six arguments of eight bytes.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping
from typing import NamedTuple

LOAD, EQUAL, GREATER_EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF_LD|W|ABS, JMP|JEQ|K, JGE, JSET, RET|K
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
NUMBER, ARCHITECTURE = 0, 4
X32 = 0x40000000
NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6
TYPED_FOR_ANOTHER = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
LAST = 462
"""mseal, Linux 6.10."""

# from 424 on every architecture has the same numbers
NEW_CALLS = {
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "pidfd_getfd": 438,
    "process_madvise": 440, "mount_setattr": 442, "quotactl_fd": 443, "memfd_secret": 447, "process_mrelease": 448,
    "set_mempolicy_home_node": 450, "statmount": 457, "listmount": 458, "lsm_get_self_attr": 459, "lsm_set_self_attr": 460,
    "lsm_list_modules": 461,
}  # fmt: skip
ABSENT = {"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "clone3": 435}
"""Answer ENOSYS: libraries then take another way. The flags of clone3 lie in memory, where a filter cannot read them."""


class Machine(NamedTuple):
    """An architecture: its audit number, the calls that are denied, and those whose arguments decide."""

    audit: int
    denied: Mapping[str, int]
    clone: int
    socket: int
    ioctl: int
    personality: int
    prlimit64: int
    unbounded: tuple[int, ...]
    """memfd_create and shmget: memory that no process maps, which only a cgroup counts."""
    gap: tuple[int, int] = (0, 0)
    """Numbers from .. to (exclusive) that are not given out."""


MACHINES = {
    "x86_64": Machine(
        audit=0xC000003E,
        denied={
            "ptrace": 101, "syslog": 103, "uselib": 134, "ustat": 136, "sysfs": 139, "vhangup": 153, "modify_ldt": 154,
            "pivot_root": 155, "_sysctl": 156, "chroot": 161, "acct": 163, "settimeofday": 164, "mount": 165, "umount2": 166,
            "swapon": 167, "swapoff": 168, "reboot": 169, "sethostname": 170, "setdomainname": 171, "iopl": 172, "ioperm": 173,
            "create_module": 174, "init_module": 175, "delete_module": 176, "get_kernel_syms": 177, "query_module": 178,
            "quotactl": 179, "nfsservctl": 180, "lookup_dcookie": 212, "clock_settime": 227, "vserver": 236, "kexec_load": 246,
            "add_key": 248, "request_key": 249, "keyctl": 250, "migrate_pages": 256, "unshare": 272, "move_pages": 279,
            "perf_event_open": 298, "fanotify_init": 300, "name_to_handle_at": 303, "open_by_handle_at": 304,
            "clock_adjtime": 305, "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312,
            "finit_module": 313, "kexec_file_load": 320, "bpf": 321, "userfaultfd": 323, **NEW_CALLS,
        },
        clone=56, socket=41, ioctl=16, personality=135, prlimit64=302, unbounded=(319, 29), gap=(335, 424),
    ),
    "aarch64": Machine(
        audit=0xC00000B7,
        denied={
            "lookup_dcookie": 18, "umount2": 39, "mount": 40, "pivot_root": 41, "nfsservctl": 42, "chroot": 51, "vhangup": 58,
            "quotactl": 60, "acct": 89, "unshare": 97, "kexec_load": 104, "init_module": 105, "delete_module": 106,
            "clock_settime": 112, "syslog": 116, "ptrace": 117, "reboot": 142, "sethostname": 161, "setdomainname": 162,
            "settimeofday": 170, "add_key": 217, "request_key": 218, "keyctl": 219, "swapon": 224, "swapoff": 225,
            "migrate_pages": 238, "move_pages": 239, "perf_event_open": 241, "fanotify_init": 262, "name_to_handle_at": 264,
            "open_by_handle_at": 265, "clock_adjtime": 266, "setns": 268, "process_vm_readv": 270, "process_vm_writev": 271,
            "kcmp": 272, "finit_module": 273, "bpf": 280, "userfaultfd": 282, "kexec_file_load": 294, **NEW_CALLS,
        },
        clone=220, socket=198, ioctl=29, personality=92, prlimit64=261, unbounded=(279, 194), gap=(295, 424),
    ),
}  # fmt: skip


def program(machine: str, *, bounded: bool) -> bytes:
    """The filter for `os.uname().machine`. Not `bounded`, by a cgroup: memory that only such a bound counts is denied as well.

    `KeyError` for an architecture without a table.
    """
    of = MACHINES[machine]
    denied, absent = ERRNO | errno.EPERM, ERRNO | errno.ENOSYS
    lines = [_line(LOAD, ARCHITECTURE), *_unless(EQUAL, of.audit, KILL), _line(LOAD, NUMBER)]
    if machine == "x86_64":
        lines += _if(GREATER_EQUAL, X32, KILL)
    lines += _if(GREATER_EQUAL, LAST + 1, absent)
    if of.gap[1]:
        lines += [_line(GREATER_EQUAL, of.gap[1], 2, 0), _line(GREATER_EQUAL, of.gap[0], 0, 1), _line(RETURN, absent)]
    for number in (*of.denied.values(), *(() if bounded else of.unbounded)):
        lines += _if(EQUAL, number, denied)
    for number in ABSENT.values():
        lines += _if(EQUAL, number, absent)
    lines += _argument(of.clone, 0, _if(ANY_BIT, NEW_NAMESPACES, denied))
    lines += _argument(of.socket, 0, _unless(EQUAL, FAMILIES, ERRNO | errno.EAFNOSUPPORT))
    lines += _argument(of.ioctl, 1, [line for number in TYPED_FOR_ANOTHER for line in _if(EQUAL, number, denied)])
    lines += _argument(of.personality, 0, _unless(EQUAL, (0, 0xFFFFFFFF), denied))
    lines += _argument(of.prlimit64, 0, _unless(EQUAL, 0, denied))  # of others: it could end process 1
    return b"".join((*lines, _line(RETURN, ALLOW)))


def _line(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    """One instruction; the jumps count lines from the next one."""
    return struct.pack("=HBBI", code, then, otherwise, value)


def _if(test: int, value: int, answer: int) -> list[bytes]:
    return [_line(test, value, 0, 1), _line(RETURN, answer)]


def _unless(test: int, values: int | tuple[int, ...], answer: int) -> list[bytes]:
    values = (values,) if isinstance(values, int) else values
    return [*(_line(test, value, len(values) - at, 0) for at, value in enumerate(values)), _line(RETURN, answer)]


def _argument(number: int, argument: int, lines: list[bytes]) -> list[bytes]:
    """If it is this call: its argument's lower half (a C int) decides, and what is not denied is allowed."""
    body = [_line(LOAD, 16 + 8 * argument), *lines, _line(RETURN, ALLOW)]
    return [_line(EQUAL, number, 0, len(body)), *body]
