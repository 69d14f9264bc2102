"""Tiny random models of architectures that transformers runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48,
    "max_position_embeddings": 192,
}  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 192}),
    "gemma": ("GemmaConfig", {**SMALL, "head_dim": 8}),
    "gemma2": ("Gemma2Config", {**SMALL, "head_dim": 8, "sliding_window": 16}),
    "phi3": ("Phi3Config", SMALL),
    "neox": ("GPTNeoXConfig", {**SMALL, "num_key_value_heads": None}),
    "olmo2": ("Olmo2Config", SMALL),
    "smollm3": ("SmolLM3Config", SMALL),
    "mistral-window": ("MistralConfig", {**SMALL, "head_dim": 8, "sliding_window": 16}),
    "bloom": ("BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
}


def make_foreign(folder: Path, kind: str, *, vocab_size: int = 128, seed: int = 0, std: float = 0.3) -> Path:
    """Writes the model with weights wide enough for its distribution to be far from uniform; no tokenizer."""
    module = foreign(kind, vocab_size=vocab_size, seed=seed, std=std)
    module.save_pretrained(folder)
    return folder


def foreign(kind: str, *, vocab_size: int = 128, seed: int = 0, std: float = 0.3) -> Any:
    import transformers

    name, fields = KINDS[kind]
    given = {key: value for key, value in fields.items() if value is not None}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = getattr(transformers, name)(vocab_size=vocab_size, **ends, **given)
    module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return module
