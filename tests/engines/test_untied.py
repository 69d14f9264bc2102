"""Copies of tied models, for a vLLM on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from agentrl.engines.contract import ScoreRequest
from agentrl.engines.folders import EMBEDDING, TIED, ModelFolder, read_tensors, shapes_of
from agentrl.engines.local import LocalEngine
from agentrl.engines.vllm.untied import main
from agentrl.episode import token_ids
from agentrl.transformer.tiny import make_tiny_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_tiny_model(tmp_path / "model", ["of"], ["search"], hidden=32, layers=1, heads=1, ff=32)


def test_the_copy_has_the_same_files(model: Path, tmp_path: Path) -> None:
    assert main([str(model), str(tmp_path / "copy")]) == 0
    assert {file.name for file in model.iterdir()} == {file.name for file in (tmp_path / "copy").iterdir()}


async def test_the_copy_gives_the_same_logprobs(model: Path, tmp_path: Path) -> None:
    main([str(model), str(tmp_path / "copy")])
    scored = []
    for folder in (model, tmp_path / "copy"):
        async with LocalEngine({"p": folder}, threads=1) as engine:
            scored.append((await engine.score(ScoreRequest("s", "p", token_ids(range(20, 40))))).logprobs.tolist())
    assert scored[0] == scored[1]


def test_weights_of_the_tied_model_fit_the_copy_with_the_embedding_as_head(model: Path, tmp_path: Path) -> None:
    main([str(model), str(tmp_path / "copy")])
    tied, copy = ModelFolder.read(model), ModelFolder.read(tmp_path / "copy")
    weights = read_tensors(model)
    assert tied.tied and not copy.tied
    assert tied.with_head(weights) is weights
    whole = copy.with_head(weights)
    copy.check(shapes_of(whole), "weights")
    assert torch.equal(whole[TIED], weights[EMBEDDING])
    assert copy.with_head(whole) is whole


def test_what_is_there_or_needs_no_copy_is_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    assert main([str(model), str(copy)]) == 0
    assert main([str(model), str(copy)]) == 1
    assert "is there already" in capsys.readouterr().err
    assert main([str(copy), str(tmp_path / "again")]) == 1
    assert "has an output matrix of its own" in capsys.readouterr().err
    assert main([]) == 2
