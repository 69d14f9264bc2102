"""The program for people who come from elsewhere runs, and reads a dataset of theirs."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from agentrl import train
from agentrl.config import apply_settings
from agentrl.resolve import load_file
from tests.train.small import tiny_model

PAGE = Path(__file__).resolve().parents[1] / "docs" / "coming_from.md"


@pytest.fixture
def adder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adder.py").write_text("\n\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)))
    return load_file(tmp_path / "adder.py")


def test_the_program_trains(adder: Any, tmp_path: Path) -> None:
    settings = ["steps=1", "rollout.size=2", "tasks_per_step=2", "eval_every=0", "workflow.agents.adder.system="]
    experiment = apply_settings(adder.adder(str(tiny_model(tmp_path / "model"))), settings)
    assert asyncio.run(train(experiment, out=tmp_path / "run", sinks=[])).batches == 1


def test_a_dataset_of_verl_becomes_tasks(adder: Any, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"prompt": [{"role": "user", "content": "What is 1 + 2?"}], "reward_model": {"ground_truth": 3}, "agent_name": "x"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
    assert adder.read_verl(str(tmp_path / "train.parquet")) == [adder.Sum("What is 1 + 2?", "3")]
