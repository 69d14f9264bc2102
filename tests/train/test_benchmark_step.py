"""Our half of `benchmarks/trl_step.py` runs; the half of TRL needs its packages."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from agentrl_workflows.search_qa.model import make_model

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "trl_step.py"


@pytest.mark.parametrize("tools", [False, True])
def test_every_step_tells_its_clock_what_it_trained(tmp_path, monkeypatch, tools):
    spec = importlib.util.spec_from_file_location("trl_step", PROGRAM)
    assert spec is not None and spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "trl_step", program)  # dataclasses look their module up
    spec.loader.exec_module(program)
    clock = program.run_ours(make_model(tmp_path / "model"), 3, tools=tools, prompt_count=2)
    assert len(clock.ends) == 3
    steps = clock.per_token()
    assert len(steps) == 2
    assert all(cpu > 0 and wall > 0 and tokens >= 2 * program.COMPLETIONS for cpu, wall, tokens in steps)
