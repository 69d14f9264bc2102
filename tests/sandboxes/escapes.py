"""Attempts to get out of a sandbox: programs that print ESCAPED if they did. For any backend; `Host` is what they try to reach.

Each is the body of a Python program. An exception is the usual way to be stopped, and is printed as `stopped`.
"""

from __future__ import annotations

import os
import socket
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

PRELUDE = """
import ctypes, os, socket, stat, subprocess, sys, time
libc = ctypes.CDLL(None, use_errno=True)
x86 = os.uname().machine == "x86_64"
def call(*what):
    ctypes.set_errno(0)
    done = libc.syscall(*(ctypes.c_long(w) if isinstance(w, int) else w for w in what))
    if done == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return done
def escaped(how=""):
    print("ESCAPED", how, flush=True)
"""


@dataclass(frozen=True)
class Host:
    """Things of the host that no sandbox may reach."""

    secret: str
    """A file that anyone on the host may read."""
    port: int
    """Of a TCP server on the loopback, by IPv4."""
    port6: int
    abstract: str
    """An abstract Unix socket that is listened on."""
    path: str
    """A Unix socket in the file system."""
    pid: int


@contextmanager
def host() -> Iterator[Host]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="escapes-")))
        folder.chmod(0o755)
        (folder / "secret").write_text("of the host")
        servers = [
            stack.enter_context(socket.socket(kind)) for kind in (socket.AF_INET, socket.AF_INET6, *[socket.AF_UNIX] * 2)
        ]
        abstract = f"escapes-{os.getpid()}"
        for server, address in zip(servers, [("127.0.0.1", 0), ("::1", 0), f"\0{abstract}", str(folder / "unix")], strict=True):
            server.bind(address)
            server.listen()
        port, port6 = servers[0].getsockname()[1], servers[1].getsockname()[1]
        yield Host(str(folder / "secret"), port, port6, abstract, str(folder / "unix"), os.getpid())


def program(code: str, host: Host) -> str:
    body = textwrap.indent(textwrap.dedent(code).strip(), "    ")
    end = 'except BaseException as error:\n    print("stopped", type(error).__name__, error, flush=True)\n'
    return f"{PRELUDE}\nHOST = {vars(host)!r}\ntry:\n{body}\n{end}"


REACHES_ON_THE_HOST = ("host-file", "host-folder", "tcp-loopback", "tcp-ipv6", "abstract-socket", "path-socket", "signal-host")
"""Those that are harmless, and so can show outside of any sandbox that they would get through."""

ATTEMPTS: dict[str, str] = {
    # files
    "host-file": "open(HOST['secret']).read(); escaped()",
    "host-folder": "os.listdir(os.path.dirname(HOST['secret'])); escaped()",
    "host-tmp": "assert 'escapes-' in ''.join(os.listdir('/tmp')); escaped()",
    "shadow": "open('/etc/shadow').read(); escaped()",
    "real-passwd": "assert len(open('/etc/passwd').readlines()) > 3; escaped()",
    "ssh-keys": "os.listdir('/root/.ssh'); escaped()",
    "write-usr": "open('/usr/escape', 'w'); escaped()",
    "write-root": "open('/escape', 'w'); escaped()",
    "write-etc": "open('/etc/escape', 'w'); escaped()",
    "write-dev": "open('/dev/escape', 'w'); escaped()",
    "write-interpreter": "open(os.__file__, 'a').write('#'); escaped()",
    "write-program": "os.chmod(os.path.realpath(sys.executable), 0o777); escaped()",
    "write-own-runner": """
        for folder, _, names in os.walk('/.agentrl'):
            for name in names:
                open(os.path.join(folder, name), 'ab').write(b'x'); escaped(name)
    """,
    "dot-dot": "open('/work/' + '../' * 40 + HOST['secret']).read(); escaped()",
    "proc-root": "open('/proc/1/root' + HOST['secret']).read(); escaped()",
    "proc-cwd": "os.listdir('/proc/1/cwd/../..' + os.path.dirname(HOST['secret'])); escaped()",
    "chroot-out": "os.mkdir('d'); os.chroot('d'); os.chroot('../' * 20); open(HOST['secret']); escaped()",
    "pivot-root": "os.mkdir('d'); call(155 if x86 else 41, b'd', b'd'); escaped()",
    "handle-open": "call(304 if x86 else 265, -100, ctypes.create_string_buffer(64), 0); escaped()",
    "handle-name": """
        call(303 if x86 else 264, -100, b'/', ctypes.create_string_buffer(64), ctypes.byref(ctypes.c_int()), 0); escaped()
    """,
    # process 1 and its secrets
    "proc-1-environ": "open('/proc/1/environ', 'rb').read(); escaped()",
    "host-environ": """
        text = b''.join(open(f'/proc/{n}/environ', 'rb').read() for n in os.listdir('/proc') if n.isdigit() and n != '1')
        assert b'OF_THE_HOST' in text; escaped()
    """,
    "proc-1-mem": "open('/proc/1/mem', 'r+b'); escaped()",
    "proc-1-fd": "os.listdir('/proc/1/fd'); escaped()",
    "proc-1-exe": "open('/proc/1/exe', 'r+b'); escaped()",
    "self-exe": "open('/proc/self/exe', 'r+b'); escaped()",
    "ptrace": "call(101 if x86 else 117, 0x4206, 1, 0, 0); escaped()",
    "ptrace-attach": "call(101 if x86 else 117, 16, 1, 0, 0); escaped()",
    "process-vm": "call(310 if x86 else 270, 1, 0, 0, 0, 0, 0); escaped()",
    "pidfd-getfd": "call(438, os.pidfd_open(1), 3, 0); escaped()",
    "kill-1": """
        for number in range(1, 32):
            try: os.kill(1, number)
            except OSError: pass
        time.sleep(0.2)
    """,
    "limits-of-1": "import resource; resource.prlimit(1, resource.RLIMIT_CPU, (0, 0)); escaped()",
    "inherited-descriptors": """
        held = [n for n in range(3, 999) if os.path.exists(f'/proc/self/fd/{n}')]
        assert held; escaped(held)
    """,
    "signal-host": "os.kill(HOST['pid'], 0); escaped()",
    "signal-parent": """
        for number in range(1, 32):
            if number not in (17, 18, 20, 23, 28):
                try: os.kill(os.getppid(), number)
                except OSError: pass
        time.sleep(0.2)
    """,
    "kill-all": """
        import signal
        if not os.fork(): os.kill(-1, signal.SIGTERM)
        time.sleep(0.2)
    """,
    "terminal-input": "import fcntl; fcntl.ioctl(0, 0x5412, b'x'); escaped()",
    "own-terminal-input": "import fcntl; a, b = os.openpty(); fcntl.ioctl(b, 0x5412, b'x'); escaped()",
    # privileges and namespaces
    "become-root": "os.setuid(0); escaped()",
    "become-another": "os.setresuid(1, 1, 1); escaped()",
    "setuid-file": """
        import shutil
        shutil.copy('/bin/sh', 'sh'); os.chmod('sh', 0o6755)
        assert subprocess.run(['./sh', '-pc', 'id -u'], capture_output=True, text=True).stdout.strip() != str(os.getuid())
        escaped()
    """,
    "sudo": "assert subprocess.run(['su', '-c', 'id -u'], capture_output=True, stdin=-3).stdout.strip() == b'0'; escaped()",
    "capabilities": """
        line = next(l for l in open('/proc/self/status') if l.startswith('CapEff')); assert int(line.split()[1], 16)
        escaped()
    """,
    "user-namespace": "call(272 if x86 else 97, 0x10000000); escaped()",
    "mount-namespace": "call(272 if x86 else 97, 0x20000); escaped()",
    "clone-namespace": """
        if call(56 if x86 else 220, 0x10000000 | 17, 0, 0, 0, 0) == 0: os._exit(0)
        escaped()
    """,
    "clone3-namespace": """
        if call(435, (ctypes.c_uint64 * 8)(0x10000000, 0, 0, 0, 17), 64) == 0: os._exit(0)
        escaped()
    """,
    "setns": "call(308 if x86 else 268, os.open('/proc/1/ns/mnt', os.O_RDONLY), 0); escaped()",
    "mount-tmpfs": "os.mkdir('d'); call(165 if x86 else 40, b'tmpfs', b'd', b'tmpfs', 0, 0); escaped()",
    "remount-writable": "call(165 if x86 else 40, b'', b'/usr', b'', 0x1020, 0); escaped()",
    "umount": "call(166 if x86 else 39, b'/proc/sys', 2); escaped()",
    "new-mount-api": "call(430, b'tmpfs', 0); escaped()",
    "open-tree": "call(428, -100, b'/', 1); escaped()",
    "uid-map": "os.write(os.open('/proc/self/uid_map', os.O_WRONLY), b'0 0 1'); escaped()",
    "device-node": "os.mknod('disk', stat.S_IFBLK | 0o600, os.makedev(254, 0)); escaped()",
    "device-open": """
        kinds = {n: os.stat(f'/dev/{n}').st_mode for n in os.listdir('/dev') if os.path.exists(f'/dev/{n}')}
        assert {n for n, mode in kinds.items() if stat.S_ISBLK(mode)} | {'mem', 'kmsg', 'kvm', 'fuse', 'net'} & set(kinds)
        escaped()
    """,
    # the kernel
    "core-pattern": "open('/proc/sys/kernel/core_pattern', 'w').write('|/work/x'); escaped()",
    "modprobe-path": "open('/proc/sys/kernel/modprobe', 'w').write('/work/x'); escaped()",
    "sysrq": "open('/proc/sysrq-trigger', 'w').write('h'); escaped()",
    "kcore": "open('/proc/kcore', 'rb').read(1) or 1 / 0; escaped()",
    "kernel-log": "call(103 if x86 else 116, 3, ctypes.create_string_buffer(99), 99); escaped()",
    "cgroup-files": "assert os.listdir('/sys/fs/cgroup'); escaped()",
    "bpf": "call(321 if x86 else 280, 0, ctypes.create_string_buffer(64), 64); escaped()",
    "keyctl": "call(250 if x86 else 219, 0, -3, 1); escaped()",
    "proc-keys": "open('/proc/keys').read() or 1 / 0; escaped()",
    "userfaultfd": "call(323 if x86 else 282, 1); escaped()",
    "io-uring": "call(425, 4, ctypes.create_string_buffer(120)); escaped()",
    "perf": "call(298 if x86 else 241, ctypes.create_string_buffer(112), 0, -1, -1, 0); escaped()",
    "module": "call(175 if x86 else 105, b'', 0, b''); escaped()",
    "kexec": "call(246 if x86 else 104, 0, 0, 0, 0); escaped()",
    "reboot": "call(169 if x86 else 142, 0, 0, 0, 0); escaped()",
    "swap": "call(168 if x86 else 225, b'/work/none'); escaped()",
    "personality": "call(135 if x86 else 92, 0x0040000); escaped()",
    "clock": "time.clock_settime(time.CLOCK_REALTIME, 0); escaped()",
    "host-name": "socket.sethostname('x'); escaped()",
    "priority": "os.nice(-5); escaped()",
    "realtime": "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)); escaped()",
    "i386-calls": """
        assert x86
        import mmap
        page = mmap.mmap(-1, 4096, prot=7); page.write(bytes.fromhex('b814000000cd80c3'))
        ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))(); escaped()
    """,
    # the network
    "tcp-loopback": "socket.create_connection(('127.0.0.1', HOST['port']), 3); escaped()",
    "tcp-ipv6": "socket.create_connection(('::1', HOST['port6']), 3); escaped()",
    "tcp-out": "socket.create_connection(('1.1.1.1', 53), 3); escaped()",
    "udp-out": "s = socket.socket(type=socket.SOCK_DGRAM); s.connect(('8.8.8.8', 53)); s.send(b'x'); escaped()",
    "dns": "socket.getaddrinfo('example.org', 80); escaped()",
    "raw-socket": "socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP); escaped()",
    "packet-socket": "socket.socket(17, socket.SOCK_RAW); escaped()",
    "netlink": "socket.socket(16, socket.SOCK_RAW, 0); escaped()",
    "vsock": "socket.socket(40, socket.SOCK_STREAM); escaped()",
    "interfaces": "assert set(os.listdir('/sys/class/net')) - {'lo'}; escaped()",
    "abstract-socket": "socket.socket(socket.AF_UNIX).connect('\\0' + HOST['abstract']); escaped()",
    "path-socket": "socket.socket(socket.AF_UNIX).connect(HOST['path']); escaped()",
    "docker-socket": "socket.socket(socket.AF_UNIX).connect('/var/run/docker.sock'); escaped()",
    "shared-memory": """
        for line in open('/proc/sysvipc/shm').readlines()[1:]: escaped(line)
    """,
}
