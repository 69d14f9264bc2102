"""The runner on its way into a container: a command that any Python has, and what it reads first."""

from __future__ import annotations

import marshal
from functools import cache
from importlib import resources

PACKAGE = "agentrl_sandboxes"
MODULES = (
    "process.inside.files", "process.inside.processes", "process.inside.repl", "process.inside.runner", "docker.inside"
)  # fmt: skip
START = """
import marshal, os, sys
from _frozen_importlib import ModuleSpec

def exactly(size):
    data = b""
    while len(data) < size:
        piece = os.read(0, size - len(data))
        if not piece:
            sys.exit()
        data += piece
    return data

class Sent:
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self, is_package=not sources[name]) if name in sources else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        exec(compile(sources[module.__name__], module.__name__, "exec"), module.__dict__)

sources = marshal.loads(exactly(int.from_bytes(exactly(4), "little")))
sys.meta_path.insert(0, Sent())
from agentrl_sandboxes.docker.inside import main
del sys.meta_path[0]
main()
"""
"""What `python3 -I -S -c` runs."""


@cache
def sources() -> bytes:
    """What it reads: four bytes that say how long, then marshalled sources by module; a package has none."""
    found = {}
    for name in MODULES:
        *above, own = name.split(".")
        for depth in range(len(above) + 1):
            found[".".join((PACKAGE, *above[:depth]))] = ""
        found[f"{PACKAGE}.{name}"] = resources.files(PACKAGE).joinpath(*above, f"{own}.py").read_text("utf-8")
    said = marshal.dumps(found, 2)
    return len(said).to_bytes(4, "little") + said
