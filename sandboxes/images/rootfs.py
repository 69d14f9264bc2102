"""Writes a root file system, as a tar, from this machine's own Python, shell and small programs: an image without a registry.

    python3 sandboxes/images/rootfs.py | docker import --change 'ENV PATH=...' - agentrl-sandbox

Everything lies where it lies here, with the shared objects that it needs. What pip installed here stays here.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

PROGRAMS = (
    "sh", "bash", "env", "true", "false", "echo", "printf", "test", "cat", "cp", "mv", "rm", "ln", "ls", "mkdir", "rmdir",
    "mktemp", "mkfifo", "touch", "truncate", "chmod", "stat", "head", "tail", "wc", "sort", "uniq", "cut", "tr", "tee",
    "seq", "sleep", "timeout", "date", "id", "pwd", "basename", "dirname", "realpath", "readlink", "dd", "du", "df", "find",
    "xargs", "grep", "sed", "awk", "diff", "cmp", "patch", "tar", "gzip", "ps", "kill", "expr", "comm", "paste", "split",
    "od", "md5sum", "sha256sum", "uname", "hostname", "whoami", "nproc", "nice", "setsid", "which",
)  # fmt: skip
NOT_WANTED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "__pycache__"}
FILES = {
    "etc/passwd": "root:x:0:0:root:/:/bin/false\nuser:x:1000:1000::/work:/bin/sh\nnobody:x:65534:65534:nobody:/work:/bin/sh\n",
    "etc/group": "root:x:0:\nuser:x:1000:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
FOLDERS = ("dev", "proc", "sys", "tmp", "work")


def python() -> list[Path]:
    """The interpreter that this one stands on, and its library."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    program = Path(sys.base_prefix, "bin", version)
    return [program, program.with_name("python3"), program.with_name("python"), *_files(Path(sys.base_prefix, "lib", version))]


def _files(folder: Path) -> Iterator[Path]:
    for above, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in NOT_WANTED and not name.startswith("config-")]
        yield from (Path(above, name) for name in names)


def needed(files: Iterable[Path]) -> set[Path]:
    """The shared objects that ELF files load, the loader among them."""
    binary = [str(path) for path in files if path.is_file() and path.open("rb").read(4) == b"\x7fELF"]
    said = subprocess.run(["ldd", *binary], capture_output=True, text=True).stdout
    return {Path(found) for found in re.findall(r"(/\S+) \(0x", said)}


def chosen() -> set[Path]:
    """All files, each by the path by which programs ask for it, and by the path where it truly lies."""
    found = {path for path in python() if path.exists()}
    found |= {Path(path) for name in PROGRAMS if (path := shutil.which(name, path="/bin:/usr/bin:/usr/local/bin"))}
    found |= needed({path.resolve() for path in found})
    for path in tuple(found):
        while path.is_symlink():  # each step of a chain: /usr/bin/awk, /etc/alternatives/awk, /usr/bin/mawk
            path = path.parent.resolve() / os.readlink(path)
            found.add(Path(os.path.normpath(path)))
    return found


def write(out: io.BufferedIOBase) -> None:
    """The tar: root's files, which every user may read, and nothing of this machine's names and times."""
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        made: set[str] = set()

        def add(info: tarfile.TarInfo, content: io.BufferedIOBase | io.BytesIO | None = None) -> None:
            if info.name in made:
                return
            made.add(info.name)
            info.uid = info.gid = info.mtime = 0
            info.uname = info.gname = ""
            tar.addfile(info, content)

        def folder(path: Path, mode: int = 0o755) -> Path:
            """Where a folder truly lies, once it is there; a link on the way (/bin to /usr/bin) comes after its end."""
            if path == path.parent:
                return path
            path = folder(path.parent) / path.name
            if path.is_symlink():
                end = folder(path.parent / os.readlink(path))
                add(tar.gettarinfo(path, str(path).lstrip("/")))
                return end
            info = tarfile.TarInfo(str(path).lstrip("/"))
            info.type, info.mode = tarfile.DIRTYPE, mode
            add(info)
            return path

        folder(Path("/bin"))  # a link, where /bin is /usr/bin
        for name in FOLDERS:
            folder(Path("/", name), 0o1777 if name in ("tmp", "work") else 0o755)
        for path in sorted(chosen()):
            real = folder(path.parent) / path.name
            info = tar.gettarinfo(real, str(real).lstrip("/"))
            if info.islnk():  # a hard link to one that is here already: written out again
                info.type, info.linkname, info.size = tarfile.REGTYPE, "", real.stat().st_size
            info.mode = 0o755 if info.mode & 0o111 else 0o644
            if info.isreg():
                with real.open("rb") as content:
                    add(info, content)
            else:
                add(info)
        for name, text in FILES.items():
            folder(Path("/", name).parent)
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(text), 0o644
            add(info, io.BytesIO(text.encode()))


if __name__ == "__main__":
    if "--path" in sys.argv:  # PATH of the image
        sys.stdout.write(":".join(dict.fromkeys([f"{sys.base_prefix}/bin", "/usr/local/bin", "/usr/bin", "/bin"])))
    else:
        write(sys.stdout.buffer)
