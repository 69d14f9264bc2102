"""Runs every escape attempt on every backend that opens here, and writes the table into docs/sandboxes.md.

    python -m tests.sandboxes.escape_table [--only process,docker,gvisor] [--json]

As root, each backend is tried as uid 65534 too (of Docker, with the group of its socket): six columns, in 5 to 17 minutes. The
table is written if all of them are there, else printed. `--json` tries as who calls and writes nothing. It ends with status 1
if an attempt got through whose reason is not in `WEAKER`, or if a column that was asked for is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from agentrl.errors import SandboxError, UserError
from agentrl.sandbox import Backend, SandboxSpec
from agentrl_sandboxes.docker import Docker
from agentrl_sandboxes.process import Process
from tests.sandboxes import escapes
from tests.sandboxes.escape_calls import CALLS, got_through
from tests.sandboxes.process_backend import LIMITS

ROOT = Path(__file__).resolve().parents[2]
DOC = ROOT / "docs" / "sandboxes.md"
BEGIN, END = "<!-- escapes: begin (python -m tests.sandboxes.escape_table) -->", "<!-- escapes: end -->"
NOBODY = 65534
TRIES = 3
SOCKET = Path("/var/run/docker.sock")
SPECS: Mapping[str, SandboxSpec] = {
    "process": Process(limits=LIMITS, warm=2),
    "docker": Docker(limits=LIMITS, warm=2),
    "gvisor": Docker(limits=LIMITS, warm=1, runtime="runsc"),
}
NAMES = (*escapes.ATTEMPTS, *CALLS)
WEAKER = {
    ("docker", "cgroup-files"): "its own cgroup's files can be read; they cannot be written",
    ("gvisor", "proc-1-environ"): "gVisor shows every process's environment; process 1's holds PATH, HOSTNAME and HOME alone",
    ("gvisor", "proc-1-fd"): "process 1's descriptors are listed; they cannot be opened",
    ("gvisor", "device-node"): "made in gVisor's own files, where it leads to no device",
    ("gvisor", "device-open"): "gVisor's own /dev lists `fuse` and `net`, which are its kernel's and not the host's",
    ("gvisor", "priority"): "taken and counted by gVisor's kernel alone; the host's is not told",
    ("gvisor", "i386-calls"): "gVisor's kernel answers them",
}
"""What gets through as the attempt is written, and why that is no way out."""


async def tried(backend: str, host: escapes.Host) -> dict[str, str]:
    """How each attempt got through on a backend; empty = stopped. `UserError` if it does not open here."""
    found: dict[str, str] = {}
    began = time.monotonic()
    async with SPECS[backend].open() as opened:
        for name in NAMES:
            found[name] = await again(opened, host, name)
    stopped = sum(not how for how in found.values())
    print(f"{backend}, {user()}: {stopped} of {len(NAMES)} in {time.monotonic() - began:.0f} s", file=sys.stderr)
    return found


async def again(backend: Backend, host: escapes.Host, name: str) -> str:
    """One attempt in a fresh session. Where no session opens or one is lost, as on a machine that has too much to do, it was
    not tried: it is made anew, and that is said."""
    for _ in range(TRIES - 1):
        try:
            return await once(backend, host, name)
        except SandboxError as error:
            print(f"{name}: made again, as {error}", file=sys.stderr)
    return await once(backend, host, name)


async def once(backend: Backend, host: escapes.Host, name: str) -> str:
    session = await backend.session(LIMITS)
    try:
        return await got_through(backend, session, host, name)
    finally:
        await session.close()


def user() -> str:
    return "root" if os.getuid() == 0 else f"uid {os.getuid()}"


def tried_by_me(backends: list[str]) -> dict[str, dict[str, str]]:
    """By backend; one that does not open here, or fails, is said on stderr and left out."""
    found: dict[str, dict[str, str]] = {}
    os.environ["OF_THE_HOST"] = "a secret"
    with escapes.host() as host:
        for backend in backends:
            try:
                found[backend] = asyncio.run(tried(backend, host))
            except (UserError, SandboxError) as error:
                print(f"{backend}, {user()}: {error}", file=sys.stderr)
    return found


def reachable(path: str) -> bool:
    return all(folder.stat().st_mode & 0o001 for folder in (Path(path).resolve(), *Path(path).resolve().parents))


def tried_by_nobody(backends: list[str]) -> dict[str, dict[str, str]]:
    """The same as uid 65534, by a Python that it may run."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    pythons = (path for path in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}") if Path(path).exists())
    python = next(filter(reachable, pythons), None)
    packages = [path for path in sys.path if "-packages" in path]
    if python is None or not all(map(reachable, (str(ROOT), *packages))):
        print(f"uid {NOBODY} can run neither this Python nor the system's, with its packages", file=sys.stderr)
        return {}
    groups = [SOCKET.stat().st_gid] if SOCKET.exists() else []
    paths = [str(ROOT), *(str(ROOT / name) for name in ("tools", "sandboxes", "workflows")), *packages]
    done = subprocess.run(
        [python, "-m", "tests.sandboxes.escape_table", "--json", "--only", ",".join(backends)],
        user=NOBODY,
        group=NOBODY,
        extra_groups=groups,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(paths), "HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    )
    return json.loads(done.stdout) if done.returncode == 0 else {}


def columns(backends: list[str]) -> dict[tuple[str, str], dict[str, str]]:
    """By backend and user."""
    found = {(backend, user()): results for backend, results in tried_by_me(backends).items()}
    if os.getuid() == 0:
        found |= {(backend, f"uid {NOBODY}"): results for backend, results in tried_by_nobody(backends).items()}
    return {key: found[key] for key in sorted(found, key=lambda key: (list(SPECS).index(key[0]), key[1]))}


def table(found: Mapping[tuple[str, str], Mapping[str, str]]) -> str:
    """Markdown: a line for each attempt, a note for each weaker cell."""
    notes: list[str] = []
    lines = [
        f"| attempt | {' | '.join(f'{backend}, {who}' for backend, who in found)} |",
        f"| --- |{' --- |' * len(found)}",
    ]
    for name in NAMES:
        cells = []
        for (backend, _), results in found.items():
            weak = WEAKER.get((backend, name))
            note = f"{backend}, {name}: {weak}"
            if results[name] and weak and note not in notes:
                notes.append(note)
            cells.append(
                "stopped" if not results[name] else f"weaker [{notes.index(note) + 1}]" if weak else f"**{results[name]}**"
            )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    held = [sum(not results[name] for name in NAMES) for results in found.values()]
    lines.append(f"| stopped of {len(NAMES)} | {' | '.join(map(str, held))} |")
    return "\n".join([*lines, "", *(f"{number}. {note}." for number, note in enumerate(notes, 1))]).rstrip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SPECS), help="backends, with commas")
    parser.add_argument("--json", action="store_true", help="what was found, for a program")
    asked = parser.parse_args()
    backends = asked.only.split(",")
    if strange := set(backends) - set(SPECS):
        parser.error(f"no backend {', '.join(sorted(strange))}; there are {', '.join(SPECS)}")
    if asked.json:
        print(json.dumps(tried_by_me(backends)))
        return 0
    found = columns(backends)
    if len(found) == 2 * len(SPECS):
        text = DOC.read_text()
        before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
        DOC.write_text(f"{before}\n{table(found)}\n{after}")
    else:
        print(f"{table(found)}\n\nnot all of the {2 * len(SPECS)} columns, so {DOC.name} stays as it is")
    users = [user(), *([f"uid {NOBODY}"] if os.getuid() == 0 else [])]
    missing = [f"{backend} as {who}: not tried" for backend in backends for who in users if (backend, who) not in found]
    bad = missing + [
        f"{backend} as {who}, {name}: {how}"
        for (backend, who), results in found.items()
        for name, how in results.items()
        if how and (backend, name) not in WEAKER
    ]
    print("\n".join(bad) or f"all stopped: {', '.join(f'{backend} as {who}' for backend, who in found)}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
