"""Files of a sandbox, from inside: a link can only lead to what the sandbox itself sees."""

from __future__ import annotations

import errno
import os
import stat

LONGEST_LISTING = 1 << 16
PIECE = 1 << 20
_KINDS = {stat.S_IFREG: b"f", stat.S_IFDIR: b"d", stat.S_IFLNK: b"l"}


def read(path: str, most: int) -> bytes:
    """A regular file's bytes; a FIFO, a device or a file of /proc is refused, not waited for."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        _regular(fd)
        found = bytearray()
        while piece := os.read(fd, PIECE):
            found += piece
            if len(found) > most:
                raise OSError(errno.EFBIG, f"more than the {most} bytes that are read")
        return bytes(found)
    finally:
        os.close(fd)


def write(path: str, data: bytes) -> None:
    """Makes the folders above, then the file, or its new content; a link in its place is refused."""
    above = os.path.dirname(path)
    if above:
        os.makedirs(above, exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o644)
    try:
        _regular(fd)
        os.ftruncate(fd, 0)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    finally:
        os.close(fd)


def listing(path: str) -> bytes:
    """Entries, sorted: a letter for the kind (f, d, l, o), eight bytes of size, two of the name's length, the name."""
    found: list[tuple[bytes, bytes]] = []
    with os.scandir(os.fsencode(path)) as entries:
        for entry in entries:
            try:
                seen = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # gone meanwhile
                continue
            kind = _KINDS.get(stat.S_IFMT(seen.st_mode)) or b"o"
            head = kind + seen.st_size.to_bytes(8, "little") + len(entry.name).to_bytes(2, "little")
            found.append((entry.name, head + entry.name))
            if len(found) > LONGEST_LISTING:
                raise OSError(errno.E2BIG, f"more than the {LONGEST_LISTING} entries that are listed")
    return b"".join(line for _, line in sorted(found))


def _regular(fd: int) -> None:
    """Refuses what is no regular file, and those of /proc: here they are process 1's own."""
    seen = os.fstat(fd)
    if stat.S_ISDIR(seen.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(seen.st_mode) or seen.st_dev == os.stat("/proc").st_dev:
        raise OSError(errno.EINVAL, "no regular file")
