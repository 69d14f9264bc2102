"""docs/sandboxes.md: its Python runs as it stands there, and its table names every attempt and hides nothing."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agentrl.errors import UserError
from agentrl.sandbox import SandboxLimits
from agentrl.testing.sandbox import CHECKS
from agentrl_sandboxes.process import Process
from tests.agents import script
from tests.boxes import experiment, running
from tests.sandboxes.escape_table import BEGIN, END, NAMES, SPECS, WEAKER

MANUAL = Path(__file__).resolve().parents[2] / "docs" / "sandboxes.md"
WORKFLOW, ALONE, LIMITS, NETWORK, CHECK = re.findall(r"```python\n(.*?)```", MANUAL.read_text(), re.DOTALL)


@dataclass(frozen=True)
class Question:
    text: str


@pytest.fixture(scope="module")
def isolates() -> None:
    async def probe() -> None:
        async with Process(warm=0).open():
            pass

    try:
        asyncio.run(probe())
    except UserError as error:
        pytest.skip(str(error))


def run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(code, "sandboxes.md", "exec"), names)
    return names


@pytest.mark.usefixtures("isolates")
async def test_the_workflow_of_the_manual_runs_what_the_model_wrote() -> None:
    solve = run(WORKFLOW)["solve"]
    code = "a, b = map(int, input().split())\nprint(a * b)"
    async with running(experiment(solve, Process(warm=0)), respond=script(code)) as runtime:
        episode = await runtime.run(Question("multiply"), group="g")
    assert episode.output == {"ok": True, "printed": "20\n"}


@pytest.mark.usefixtures("isolates")
def test_the_backend_of_the_manual_runs_without_a_workflow(capsys: pytest.CaptureFixture[str]) -> None:
    run(ALONE)
    assert capsys.readouterr().out.endswith("the kernel is shared\n42\n\n")


def test_the_limits_of_the_manual_are_limits() -> None:
    assert run(LIMITS)["sandbox"] == Process(limits=SandboxLimits(memory_mb=256, cpu_seconds=10, timeout=20), warm=16)


def test_the_network_of_the_manual_is_a_network() -> None:
    assert run(NETWORK)["sandbox"].limits.network == ("pypi.org:443", "localhost:8000")


@pytest.mark.usefixtures("isolates")
def test_every_claim_holds_for_process_by_the_program_of_the_manual() -> None:
    assert run(CHECK)["held"] == tuple(CHECKS)


def rows() -> list[list[str]]:
    text = MANUAL.read_text()
    lines = text[text.index(BEGIN) : text.index(END)].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def test_the_table_of_escapes_has_every_attempt() -> None:
    _, _, *attempts, total = rows()
    assert [row[0] for row in attempts] == list(NAMES), "python -m tests.sandboxes.escape_table"
    assert len(NAMES) >= 40
    assert total[0] == f"stopped of {len(NAMES)}"


def test_the_table_of_escapes_has_all_stopped_on_the_default_backend_and_a_reason_for_what_is_weaker() -> None:
    head, _, *attempts, _ = rows()
    backends = [column.split(",")[0] for column in head[1:]]
    assert {"process", "docker", "gvisor"} == set(backends) <= set(SPECS)
    for name, *cells in attempts:
        for backend, cell in zip(backends, cells, strict=True):
            assert cell == "stopped" or (re.fullmatch(r"weaker \[\d+\]", cell) and (backend, name) in WEAKER), (name, backend)
            assert backend != "process" or cell == "stopped"
