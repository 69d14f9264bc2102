"""Where `Process` cannot isolate it does not start, and says what docs/sandboxes.md says: real systems that lack something."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from agentrl_sandboxes.process.spec import bubblewrap

ROOT = Path(__file__).resolve().parents[2]
MANUAL = (ROOT / "docs" / "sandboxes.md").read_text()
TABLE = re.search(r"\| the error says \| do \|\n(.*?)\n\n", MANUAL, re.DOTALL)
CHECKOUT = [str(ROOT), str(ROOT / "sandboxes")]
OPEN = """if True:
    import asyncio
    from agentrl.errors import UserError
    from agentrl_sandboxes.process import Process
    async def main():
        async with Process(warm=0).open() as backend:
            print("isolated:", backend.isolation)
    try:
        asyncio.run(main())
    except UserError as error:
        print("UserError", error)
"""
NAMESPACE = """if True:
    import os
    from agentrl_sandboxes.process import kernel
    user, group = os.getuid(), os.getgid()
    def namespace():
        begun, begin = os.pipe()
        if not os.fork():  # who stays outside gives the namespace its users: root all, another itself
            os.read(begun, 1)
            whose = f"/proc/{os.getppid()}"
            open(f"{whose}/setgroups", "w").write("deny" if user else "allow")
            open(f"{whose}/uid_map", "w").write(f"{user} {user} {1 if user else 65536}")
            open(f"{whose}/gid_map", "w").write(f"{group} {group} {1 if user else 65536}")
            os._exit(0)
        kernel.unshare(kernel.NEW_USERS | kernel.NEW_MOUNTS)
        os.write(begin, b"1")
        os.wait()
        kernel.mount("none", "/", None, kernel.RECURSIVE | kernel.PRIVATE)
    namespace()
"""
MASKED = """
    kernel.mount("tmpfs", "/proc/sys", "tmpfs", 0)
    if not user:
        namespace()  # below which a mask cannot be taken off, as in a container; the launcher makes another user's
"""
NO_PIVOT = """if True:
    import ctypes, os
    from agentrl_sandboxes.process.seccomp import *
    from agentrl_sandboxes.process.seccomp import _if, _line
    number = MACHINES[os.uname().machine].denied["pivot_root"]
    lines = b"".join((_line(LOAD, NUMBER), *_if(EQUAL, number, ERRNO | errno.EPERM), _line(RETURN, ALLOW)))
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("lines", ctypes.c_char_p)]
    libc = ctypes.CDLL(None)
    assert not libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    assert not libc.prctl(22, 2, ctypes.byref(Program(len(lines) // 8, lines)))  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
"""
"""Docker's own filter does not let even a root with CAP_SYS_ADMIN pivot."""
ANOTHER = "import ctypes; ctypes.CDLL(None).personality(8)\n"
"""PER_LINUX32: uname gives the 32-bit name of the machine."""
IN_A_NAMESPACE = ("unshare", "--user", "--map-root-user")
as_root = pytest.mark.skipif(os.getuid() != 0, reason="an ordinary user is nobody's root in a namespace of its own")


def opening(*before: str, code: str = OPEN, flags: Sequence[str] = (), path: Sequence[str] = sys.path) -> str:
    """What a Python that opens `Process` says, started by that command."""
    ran = subprocess.run(
        [*before, sys.executable, *flags, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*CHECKOUT, *filter(None, path)])},
        cwd=ROOT,
        timeout=60,
    )
    return ran.stdout or ran.stderr


@pytest.fixture(scope="module")
def namespaces() -> None:
    """The situations are made in user namespaces."""
    if subprocess.run([*IN_A_NAMESPACE, "true"], capture_output=True).returncode:
        pytest.skip("no user namespace can be made here")


def check(said: str, phrase: str) -> None:
    """It is a refusal with that cause, and each option that the manual names as its cure."""
    assert TABLE is not None
    (row,) = [row for row in TABLE[1].splitlines() if phrase in row.split("|")[1]]
    assert said.startswith("UserError"), said
    assert phrase in said
    cures = re.findall(r"[\w.-]+=\w+|--cap-add \w+|agentrl-runtime\[\w+\]|Docker\(|65536", row.split("|", 2)[2])
    assert cures
    assert [cure for cure in cures if cure not in said] == [], said


@pytest.mark.usefixtures("namespaces")
def test_an_ordinary_user_without_user_namespaces() -> None:
    without = ("--unshare-user", "--uid", "1000", "--gid", "1000", "--disable-userns", "--dev-bind", "/", "/")
    said = opening(str(bubblewrap()), *without)
    check(said, "unprivileged user namespaces are off")
    assert "for user 1000" in said


@pytest.mark.usefixtures("namespaces")
def test_a_root_without_the_capability() -> None:
    check(opening(*IN_A_NAMESPACE, "setpriv", "--bounding-set", "-sys_admin"), "for root: CAP_SYS_ADMIN is missing")


@pytest.mark.usefixtures("namespaces")
def test_a_filter_that_denies_pivot_root() -> None:
    check(opening(code=NO_PIVOT + OPEN), "pivot_root is denied")


@pytest.mark.usefixtures("namespaces")
def test_a_masked_proc() -> None:
    check(opening(code=NAMESPACE + MASKED + OPEN), "in a container, /proc is masked")


@as_root
@pytest.mark.usefixtures("namespaces")
@pytest.mark.parametrize("called", [IN_A_NAMESPACE[2:], ("--map-user=1000", "--map-group=1000")], ids=["root", "user 1000"])
def test_a_root_that_can_be_nobody_else(called: tuple[str, ...]) -> None:
    check(opening("unshare", "--user", *called), "this root has no other users")


@as_root
@pytest.mark.usefixtures("namespaces")
def test_a_root_with_other_users_in_its_namespace_is_isolated_by_them() -> None:
    said = opening(code=NAMESPACE + OPEN)
    assert said.startswith("isolated: bubblewrap: a user of its own"), said


def test_no_bubblewrap(tmp_path: Path) -> None:
    for needed in Path(np.__file__).parents[1].glob("numpy*"):  # all that `agentrl` itself needs
        (tmp_path / needed.name).symlink_to(needed)
    check(opening(flags=["-S"], path=[str(tmp_path)]), "need bubblewrap")


def test_another_architecture() -> None:
    name = subprocess.run(
        [sys.executable, "-c", ANOTHER + "import platform; print(platform.machine())"], capture_output=True, text=True
    )
    if name.stdout.strip() in ("x86_64", "aarch64"):
        pytest.skip("this processor has no 32-bit name")
    check(opening(code=ANOTHER + OPEN), "need Linux on")
