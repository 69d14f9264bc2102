"""Checks of `read`, `write` and `list`. The docstring of each is its claim."""

from __future__ import annotations

import asyncio
import os

from agentrl.sandbox import Entry
from agentrl.testing.claims import require
from agentrl.testing.sandbox_subject import Subject, fails_as, same, sh, well

ODD = os.fsdecode(b"a\n\xff 'b..")
EVERY_BYTE = bytes(range(256)) * 400
AT_ONCE = 10.0
"""Seconds in which a file that is none must be refused."""


async def bytes_come_back_as_they_went(s: Subject) -> None:
    """`read` gives what `write` took, whatever bytes and name; the folders above are made; a shorter file is shorter."""
    session = await s.session()
    for path in ("plain", "a/b/c", "/work/x", "/tmp/agentrl-check/x", "-rf", ODD, f"in/{ODD}/\udcfe"):
        for data in (EVERY_BYTE, b"less", b""):
            await session.write(path, data)
            same(await session.read(path), data, f"the bytes of {path!r}")
    await sh(session, "rm -rf /tmp/agentrl-check")


async def relative_paths_begin_in_work(s: Subject) -> None:
    """A relative path is one below /work."""
    session = await s.session()
    await session.write("a/b", b"1")
    same(await session.read("/work/a/b"), b"1", "the file a/b by its whole path")


async def a_folder_is_listed_as_it_is(s: Subject) -> None:
    """`list` gives each entry's name, whatever its bytes, its kind and its size; a link is a link."""
    session = await s.session()
    await session.write(f"d/{ODD}", b"12345")
    code = "import os; os.chdir('d'); os.mkdir('f'); os.symlink('/nowhere', 'l'); os.mkfifo('p'); open(b'\\n\\xfe', 'w')"
    well(await session.python(code), "making a folder")
    found = {entry.name: entry for entry in await session.list("d")}
    kinds = {name: entry.kind for name, entry in found.items()}
    same(kinds, {ODD: "file", "f": "folder", "l": "link", "p": "other", "\n\udcfe": "file"}, "names and kinds")
    same(found[ODD], Entry(ODD, "file", 5), "a file of five bytes")


async def what_is_not_there_is_an_os_error(s: Subject) -> None:
    """A file or folder that is not there is FileNotFoundError, a folder to read IsADirectoryError, a closed file an OSError."""
    session = await s.session()
    await session.write("folder/file", b"")
    await fails_as(session.read("missing"), FileNotFoundError, "reading a file that is not there")
    await fails_as(session.list("missing"), FileNotFoundError, "listing a folder that is not there")
    await fails_as(session.read("folder"), IsADirectoryError, "reading a folder")
    await fails_as(session.list("folder/file"), OSError, "listing a file")
    await fails_as(session.write("folder", b"x"), OSError, "writing over a folder")
    await fails_as(session.read("a\0b"), OSError, "reading a name with a NUL")
    same(await session.read("folder/file"), b"", "a file after the errors of others")


async def what_is_no_file_is_refused_at_once(s: Subject) -> None:
    """A pipe, a device and a link that leads nowhere are an OSError to read, and do not hang; a pipe is not written."""
    session = await s.session()
    well(await session.python("import os; os.mkfifo('pipe'); os.symlink('loop', 'loop')"), "making a pipe and a loop")
    async with asyncio.timeout(AT_ONCE):
        for path in ("pipe", "/dev/zero", "loop"):
            await fails_as(session.read(path), OSError, f"reading {path}")
        await fails_as(session.write("pipe", b"x"), OSError, "writing to a pipe")


async def a_full_disk_is_an_os_error(s: Subject) -> None:
    """What finds no room is an OSError; files can be read, deleted and written again."""
    session = await s.session(s.small)
    piece = bytes(s.small.disk_mb << 19)

    async def fill() -> None:
        for number in range(8):
            await session.write(f"large-{number}", piece)

    await fails_as(fill(), OSError, f"writing four times disk_mb={s.small.disk_mb}")
    same(await session.read("large-0"), piece, "the first of the files that filled the disk")
    await sh(session, "rm -f large-*")
    await session.write("after", b"1")
    same(await session.read("after"), b"1", "a file after the disk was full")


async def a_file_larger_than_the_disk_is_not_read(s: Subject) -> None:
    """A file of more than `disk_mb`, as a sparse one can be, is an OSError to read."""
    session = await s.session(s.small)
    made = await session.python(f"open('sparse', 'w').truncate({(s.small.disk_mb + 1) << 20})")
    if made.ok:  # else it cannot be made, which is as good
        await fails_as(session.read("sparse"), OSError, "reading a file larger than the disk")
    require((await session.python("1")).ok, "Python is gone after a sparse file")


FILE_CHECKS = (
    bytes_come_back_as_they_went, relative_paths_begin_in_work, a_folder_is_listed_as_it_is, what_is_not_there_is_an_os_error,
    what_is_no_file_is_refused_at_once, a_full_disk_is_an_os_error, a_file_larger_than_the_disk_is_not_read,
)  # fmt: skip
