"""Which folders are run by transformers, which are refused, and what is kept of their weights."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from agentrl.errors import UserError
from agentrl.transformer.config import ModelConfig
from agentrl.transformer.foreign import Foreign, read_config
from agentrl.transformer.layers import attend_causal, forward, logits
from agentrl.transformer.weights import digest_weights, load_weights, save_weights
from tests.transformer.foreign_models import KINDS, foreign, make_foreign


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_read_and_written_as_transformers_has_them(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    config = read_config(make_foreign(tmp_path / "one", kind))
    assert isinstance(config, Foreign)
    assert config.vocab_size == 128 and config.eos_ids == (2,)
    weights = load_weights(tmp_path / "one")
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == config.shapes
    save_weights(tmp_path / "two", config, weights)
    assert digest_weights(load_weights(tmp_path / "two")) == digest_weights(weights)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "two")(ids).logits
        assert torch.equal(again, foreign(kind)(ids).logits)


def test_a_mistral_without_a_window_is_computed_here(tmp_path: Path) -> None:
    import transformers

    settings: dict[str, Any] = KINDS["mistral-window"][1] | {"sliding_window": None}
    module = transformers.MistralForCausalLM(transformers.MistralConfig(vocab_size=128, **settings)).eval()
    module.save_pretrained(tmp_path)
    config = read_config(tmp_path)
    assert isinstance(config, ModelConfig)
    ids = torch.arange(3, 43)
    with torch.no_grad():
        weights = load_weights(tmp_path)
        ours = logits(config, weights, forward(config, weights, ids, torch.arange(len(ids)), attend_causal))
        assert (ours - module(ids[None]).logits[0]).abs().max() < 1e-4


def written(folder: Path, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"}, "is an encoder-decoder"),
        ({"architectures": ["BertForMaskedLM"], "model_type": "bert"}, "BertForMaskedLM is no causal language model"),
        ({"architectures": ["Novel9000"], "model_type": "novel9000"}, "cannot be read by transformers"),
        (
            {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "quantization_config": {"quant_method": "gptq"}},
            "quantised",
        ),
        ({"model_type": "gpt2"}, r"\(none\) is no causal language model"),
    ],
)
def test_folders_that_hold_no_causal_model_are_refused(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_config(written(tmp_path, **config))


def test_a_state_space_model_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, architectures=["MambaForCausalLM"], model_type="mamba", hidden_size=32, num_hidden_layers=1)
    config = read_config(folder)
    assert isinstance(config, Foreign)
    with pytest.raises(UserError, match="MambaForCausalLM keeps no keys and values"):
        _ = config.shapes


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    folder = make_foreign(tmp_path, "gpt2")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"the weights in .* cannot be read by transformers"):
        load_weights(folder)


def test_without_transformers_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_foreign(tmp_path, "gpt2")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"architecture GPT2LMHeadModel is not supported.*agentrl-runtime\[transformers\]"):
        read_config(folder)
