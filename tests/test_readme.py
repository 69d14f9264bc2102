"""Every Python block of the README runs, on a real small model."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from agentrl import train
from agentrl.config import apply_settings
from tests.train.small import tiny_model

README = Path(__file__).resolve().parents[1] / "README.md"


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The README's blocks as files in a folder that has what they ask for; by file name."""
    monkeypatch.chdir(tmp_path)
    tiny_model(tmp_path / "models" / "warm")
    lines = {
        "docs.jsonl": [{"title": "Lima", "text": "country: Peru"}, {"title": "Peru", "text": "currency: Sol"}],
        "train.jsonl": [{"text": "country of Lima?", "answer": "Peru"}, {"text": "currency of Peru?", "answer": "Sol"}],
        "test.jsonl": [{"text": "currency of Peru?", "answer": "Sol"}],
    }
    for name, entries in lines.items():
        (tmp_path / name).write_text("\n".join(json.dumps(entry) for entry in entries))
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) == 3
    found: dict[str, ModuleType] = {}
    for number, name in enumerate(("search", "mylab", "served")):
        module = ModuleType(f"readme_{name}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        if name == "served":
            module.__dict__.update({key: found["search"].__dict__[key] for key in ("Question", "hello")})
        (tmp_path / f"{name}.py").write_text(blocks[number])
        exec(compile(blocks[number], str(tmp_path / f"{name}.py"), "exec"), module.__dict__)
        found[name] = module
    return found


def test_every_block_of_the_readme_runs(modules: dict[str, Any]) -> None:
    settings = ["steps=2", "rollout.size=4", "eval_every=2", "tasks_per_step=2"]
    hello = apply_settings(modules["search"].hello(), settings)
    mine = replace(hello, credit=modules["mylab"].RoleCentred(gamma=0.9))
    result = asyncio.run(train(mine, out="runs/hello", sinks=[]))
    assert result.batches == 2
    question = modules["search"].Question("currency of Peru?")
    assert isinstance(asyncio.run(modules["served"].serve_one(question)), str)
