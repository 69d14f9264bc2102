"""The decoder agrees with transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from agentrl.transformer.config import ModelConfig
from agentrl.transformer.layers import attend_causal, forward, logits
from agentrl.transformer.weights import init_weights, load_weights, save_weights

SIZES: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}


def make(kind: str) -> PreTrainedModel:
    torch.manual_seed(7)
    if kind == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=True))
    if kind == "qwen3-untied":
        return Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=32, tie_word_embeddings=False, attention_bias=True))
    if kind == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True))
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False))
    if kind == "llama-biased":
        return LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, rope_parameters=LINEAR))
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True, rope_parameters=LLAMA3))


KINDS = ["qwen3", "qwen3-untied", "qwen2", "llama", "llama-biased", "llama3"]


@pytest.mark.parametrize("kind", KINDS)
def test_logprobs_equal_those_of_transformers(kind: str, tmp_path: Path) -> None:
    model = make(kind).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)  # transformers draws them as zeros, which would hide a lost bias
    model.save_pretrained(tmp_path)
    config, tensors = ModelConfig.from_folder(tmp_path), load_weights(tmp_path)
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, config.vocab_size, 90))
    with torch.inference_mode():
        want = torch.log_softmax(model(ids[None]).logits[0].double(), -1)
        rows = forward(config, tensors, ids, torch.arange(90), attend_causal)
        got = torch.log_softmax(logits(config, tensors, rows).double(), -1)
    assert float((want - got).abs().max()) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_what_we_save(kind: str, tmp_path: Path) -> None:
    model = make(kind).eval()
    model.save_pretrained(tmp_path / "theirs")
    config = ModelConfig.from_folder(tmp_path / "theirs")
    tensors = init_weights(config, seed=3, std=0.2)
    save_weights(tmp_path / "ours", config, tensors)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    ids = torch.arange(40) % config.vocab_size
    with torch.inference_mode():
        want = loaded(ids[None]).logits[0]
        got = logits(config, tensors, forward(config, tensors, ids, torch.arange(40), attend_causal))
    assert float((want.log_softmax(-1) - got.log_softmax(-1)).abs().max()) < 1e-5


def test_gradients_flow_to_every_tensor(tmp_path: Path) -> None:
    make("qwen3").save_pretrained(tmp_path)
    config = ModelConfig.from_folder(tmp_path)
    tensors = {name: value.requires_grad_() for name, value in load_weights(tmp_path).items()}
    rows = forward(config, tensors, torch.arange(12), torch.arange(12), attend_causal)
    logits(config, tensors, rows).log_softmax(-1)[:, 5].sum().backward()
    assert all(value.grad is not None and bool(value.grad.abs().sum() > 0) for value in tensors.values())
