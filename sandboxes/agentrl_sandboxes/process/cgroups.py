"""Control groups of the sandboxes: memory and processes, summed. Version 1 or 2, if one can be written: tried, not guessed."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

ROOT = Path("/sys/fs/cgroup")
SLACK_MB = 16
"""For process 1 and bubblewrap. What lies in the sandbox's files lies in memory, too, so that is added."""
SLACK_PROCESSES = 3
"""Process 1, and bubblewrap inside and outside."""


class Cgroups(NamedTuple):
    """Folders of one backend: below each, one for each slot."""

    version: int
    memory: Path
    pids: Path | None

    @property
    def events(self) -> str:
        """The file of a slot (`{}`) in which a line `oom_kill N` counts what memory ended."""
        return str(self.memory / "{}" / ("memory.oom_control" if self.version == 1 else "memory.events"))

    def enter(self, slot: int, memory_mb: int, disk_mb: int, processes: int) -> None:
        """Sets a slot's limits and puts this process there. A slot's folder is used again: each new one would leave a rest."""
        most = str((memory_mb + disk_mb + SLACK_MB) << 20)
        folder = self.memory / str(slot)
        folder.mkdir(exist_ok=True)
        if self.version == 1:
            with_swap = folder / "memory.memsw.limit_in_bytes"
            steps = [(with_swap, "-1"), (folder / "memory.limit_in_bytes", most), (with_swap, most)]
            for file, value in steps if with_swap.exists() else steps[1:2]:
                file.write_text(value)
        else:
            (folder / "memory.max").write_text(most)
            if (folder / "memory.swap.max").exists():
                (folder / "memory.swap.max").write_text("0")
        (folder / "cgroup.procs").write_text("0")
        if self.pids is not None:
            folder = self.pids / str(slot)
            folder.mkdir(exist_ok=True)
            (folder / "pids.max").write_text(str(processes + SLACK_PROCESSES))
            (folder / "cgroup.procs").write_text("0")

    def remove(self) -> None:
        """Every folder that no process is in."""
        for home in {self.memory, self.pids or self.memory}:
            _remove(home)


def find() -> Cgroups | None:
    """Makes this process's folders; None where neither version lets it. What ended processes left is removed."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    by_controller = {name: path for _, names, path in lines for name in names.split(",")}
    own = os.readlink("/proc/self")
    name = f"agentrl-{_processes()}-{own}-{_began(own)}"
    memory = _made(ROOT / "memory", by_controller.get("memory"), name, "memory.limit_in_bytes")
    if memory is not None:
        return Cgroups(1, memory, _made(ROOT / "pids", by_controller.get("pids"), name, "cgroup.procs"))
    if "" not in by_controller:
        return None
    place = PurePosixPath(by_controller[""])
    _enabled(ROOT / place.relative_to("/"))  # the machine's root alone may have both processes and children with limits
    for above in (place, *place.parents):  # so it is beside its own group that a process finds room, if at all
        both = _made(ROOT, str(above), name, "memory.max")
        if both is not None and _enabled(both):
            return Cgroups(2, both, both)
        if both is not None:
            _remove(both)
    return None


def _made(root: Path, place: str | None, name: str, proof: str) -> Path | None:
    if place is None:
        return None
    folder = root / place.strip("/") / name
    try:
        _reap(folder.parent)
        folder.mkdir()
        if (folder / proof).exists() and os.access(folder / proof, os.W_OK):
            return folder
        folder.rmdir()
    except OSError:
        pass
    return None


def _enabled(folder: Path) -> bool:
    """Whether the groups below a folder may have limits of both kinds."""
    try:
        (folder / "cgroup.subtree_control").write_text("+memory +pids")
    except OSError:
        return False
    return True


def _reap(parent: Path) -> None:
    """Removes the folders of launchers that are no more; the start time tells a number that was given out again."""
    for folder in parent.glob(f"agentrl-{_processes()}-*-*"):
        pid, began = folder.name.split("-")[2:]
        if _began(pid) != int(began):
            _remove(folder)


def _processes() -> int:
    """The process namespace, in which alone a number names a process."""
    return os.stat("/proc/self/ns/pid").st_ino


def _remove(home: Path) -> None:
    for folder in (*home.glob("*/"), home):
        with suppress(OSError):  # still used, or gone
            folder.rmdir()


def _began(pid: str) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return -1
