"""The shape of the house: arrows go down only, modules and functions stay small, the import stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "agentrl"
CATALOGUES = ("agentrl_tools", "agentrl_sandboxes", "agentrl_workflows")
MODULES = sorted(LIBRARY.rglob("*.py"))
ALL_CODE = [
    *MODULES,
    *sorted(
        path
        for folder in ("tools", "sandboxes", "workflows", "benchmarks", "scripts")
        for path in (ROOT / folder).rglob("*.py")
    ),
]

# from the top of the house to its ground; a module may import its own floor and those below
FLOORS = (
    ("cli", "__main__"),
    ("train", "serve", "view", "doctor", "parity", "report"),
    ("evaluate", "setup"),
    ("edit",),
    ("run", "meter", "admission", "prepare", "publish"),
    ("runtime", "config", "resolve", "metrics", "testing", "exchange"),
    ("experiment",),
    ("rubrics",),
    ("team", "agent", "box", "judge", "toolcall", "workflow"),
    (
        "context",
        "rendering",
        "tool",
        "sandbox",
        "engines",
        "store",
        "tasks",
        "rollout",
        "credit",
        "transforms",
        "objectives",
        "probes",
        "learning",
        "limits",
        "transformer",
    ),
    ("episode", "effect", "errors", "faults"),
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def name_of(path: Path) -> str:
    relative = path.relative_to(LIBRARY).with_suffix("")
    return relative.parts[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_go_down_only(path: Path) -> None:
    own = name_of(path)
    if own == "__init__":
        return
    assert own in FLOOR, f"{own} has no floor; give it one in FLOORS"
    for module in imports(path):
        assert not module.startswith(CATALOGUES), f"{path.name} imports the catalogue {module}"
        parts = module.split(".")
        if parts[0] == "agentrl" and len(parts) > 1 and parts[1] in FLOOR:
            assert FLOOR[parts[1]] >= FLOOR[own], f"{own} imports {parts[1]}, which stands above it"


@pytest.mark.parametrize("path", ALL_CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400, f"{path} has {text.count(chr(10))} lines; split it by subject"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{path.name}:{node.lineno} {node.name} has {length} lines"


def test_the_loop_fits_on_a_few_pages() -> None:
    assert (LIBRARY / "train.py").read_text().count("\n") <= 200


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_tasks_live_in_groups_and_errors_are_named(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else ""
            allowed = path.name == "errors.py"
            assert caught not in ("", "Exception", "BaseException") or allowed, f"{path.name}:{node.lineno} catches everything"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("asyncio.gather", "asyncio.create_task", "asyncio.ensure_future"), (
                f"{path.name}:{node.lineno} {called}"
            )


def test_importing_agentrl_is_light() -> None:
    code = (
        "import sys, time; began = time.process_time(); import agentrl; spent = time.process_time() - began; "
        "heavy = [m for m in ('torch', 'transformers', 'aiohttp', 'tokenizers', 'matplotlib', 'rich') if m in sys.modules]; "
        "print(spent, heavy)"
    )
    best = min(
        float(run.split()[0]) for run in (subprocess.check_output([sys.executable, "-c", code], text=True) for _ in range(5))
    )
    heavy = subprocess.check_output([sys.executable, "-c", code], text=True).split(maxsplit=1)[1].strip()
    assert heavy == "[]", f"import agentrl loads {heavy}"
    assert best < 0.3, f"import agentrl takes {best:.2f} CPU-seconds"


def test_public_names_are_few_and_there() -> None:
    import agentrl

    assert len(agentrl.__all__) <= 30
    for name in agentrl.__all__:
        assert getattr(agentrl, name) is not None


@pytest.mark.parametrize("first", ["import agentrl.train", "from agentrl.train import TrainResult", "import agentrl.tool", ""])
def test_a_name_is_never_the_module_it_lives_in(first: str) -> None:
    names = "tool, train, workflow, evaluate"
    code = f"{first}\nfrom agentrl import {names}\nassert all(map(callable, ({names})))"
    subprocess.run([sys.executable, "-c", code], check=True)
