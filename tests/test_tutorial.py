"""The tutorial's program runs as it stands, in fewer steps, and the player in it is what the text says."""

from __future__ import annotations

import asyncio
import random
import re
from pathlib import Path
from typing import Any

import pytest

from agentrl import train
from agentrl.cli import main
from agentrl.resolve import load_file

TUTORIAL = Path(__file__).resolve().parents[1] / "docs" / "tutorial.md"


@pytest.fixture
def safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`safe.py` as a reader would have it."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", TUTORIAL.read_text(), flags=re.DOTALL)
    (tmp_path / "safe.py").write_text("\n\n".join(blocks))
    return load_file(tmp_path / "safe.py")


def test_the_program_of_the_tutorial_trains(safe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rollout", "safe.py:shown", "-n", "2"]) == 0
    assert "try" in capsys.readouterr().out
    asyncio.run(train(safe.shown(steps=2), out="runs/safe/warm", sinks=[]))
    settings = ["--set", "rollout.size=2", "--set", "tasks_per_step=2", "--set", "steps=1", "--set", "eval_every=1"]
    assert main(["train", "safe.py:learned", "--out", "runs/safe/rl", *settings]) == 0
    assert "policy burglar" in capsys.readouterr().out


def test_the_clumsy_player_uses_what_it_is_told(safe: Any) -> None:
    told = (
        "<|user|>code?<|assistant|><try>4</try><|end|><|tool|>higher<|assistant|><try>6</try><|end|><|tool|>lower<|assistant|>"
    )
    assert safe.clumsy(told, random.Random(0)) == "5"
    assert safe.clumsy("<|user|>code?<|assistant|>", random.Random(0)).startswith("<try>")
