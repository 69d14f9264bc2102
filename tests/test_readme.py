"""Every block of the README runs: its Python on a real small model, its commands in their order. Only steps are fewer."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from agentrl.cli import main
from agentrl.resolve import load_file
from tests.train.small import tiny_model

README = Path(__file__).resolve().parents[1] / "README.md"
BY_HAND = ("git clone", "pip install")
"""Blocks that begin so make an environment: CI's own stages run them."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the README asks for: documents, questions, a model; and its programs as files."""
    monkeypatch.chdir(tmp_path)
    tiny_model(tmp_path / "models" / "warm")
    lines = {
        "docs.jsonl": [{"title": "Lima", "text": "country: Peru"}, {"title": "Peru", "text": "currency: Sol"}],
        "train.jsonl": [{"text": "country of Lima?", "answer": "Peru"}, {"text": "currency of Peru?", "answer": "Sol"}],
        "test.jsonl": [{"text": "currency of Peru?", "answer": "Sol"}],
    }
    for name, entries in lines.items():
        (tmp_path / name).write_text("\n".join(json.dumps(entry) for entry in entries))
    *search, mylab, served = blocks("python")
    assert "if __name__" in search[-1]
    (tmp_path / "search.py").write_text("\n".join(search))
    (tmp_path / "mylab.py").write_text(mylab)
    (tmp_path / "served.py").write_text("from search import Question, hello\n" + served)
    return tmp_path


def test_every_block_of_the_readme_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = [line for block in blocks("sh") if not block.startswith(BY_HAND) for line in block.splitlines()]
    assert len(commands) >= 12
    for line in commands:
        program, *arguments = shlex.split(line.replace("--set steps=50", "--set steps=2"), comments=True)
        assert (program, main(arguments)) == ("agentrl", 0), f"{line}: {capsys.readouterr().err}"
    for line in re.findall(r"(agentrl .*?)(?:  \(|\n)", (folder / "mylab.py").read_text()):
        small = ["--set", "steps=1", "--set", "eval_every=0"] if line.startswith("agentrl train") else []
        assert main([*shlex.split(line)[1:], *small]) == 0, f"{line}: {capsys.readouterr().err}"
    served: Any = load_file(folder / "served.py")
    question = served.Question("currency of Peru?")
    assert isinstance(asyncio.run(served.serve_one(question)), str)
    assert served.asked() == [question]
