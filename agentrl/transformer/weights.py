"""Weights as a dict of float32 tensors by Hugging Face name: read, write, draw, digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from agentrl.errors import UserError
from agentrl.transformer.adapter import merged_weights, read_adapter
from agentrl.transformer.config import ModelConfig
from agentrl.transformer.foreign import Foreign, read_config

EMBEDDING = "model.embed_tokens.weight"
OUTPUT = "lm_head.weight"


def weight_shapes(config: ModelConfig | Foreign) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of the model by name; a tied output matrix is not among them."""
    if isinstance(config, Foreign):
        return config.shapes
    hidden, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
    matrices = {
        "self_attn.q_proj": (config.heads * dim, hidden, config.qkv_bias),
        "self_attn.k_proj": (config.kv_heads * dim, hidden, config.qkv_bias),
        "self_attn.v_proj": (config.kv_heads * dim, hidden, config.qkv_bias),
        "self_attn.o_proj": (hidden, config.heads * dim, config.output_bias),
        "mlp.gate_proj": (inner, hidden, config.mlp_bias),
        "mlp.up_proj": (inner, hidden, config.mlp_bias),
        "mlp.down_proj": (hidden, inner, config.mlp_bias),
    }
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
    if config.qk_norm:
        norms |= {"self_attn.q_norm": dim, "self_attn.k_norm": dim}
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, hidden)}
    for layer in range(config.layers):
        for name, (rows, columns, bias) in matrices.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = (rows, columns)
            if bias:
                shapes[f"model.layers.{layer}.{name}.bias"] = (rows,)
        for name, size in norms.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = (size,)
    shapes["model.norm.weight"] = (hidden,)
    if not config.tied:
        shapes[OUTPUT] = (config.vocab_size, hidden)
    return shapes


def check_weights(config: ModelConfig | Foreign, tensors: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """The model's own tensors as float32; `UserError` names what is missing, too many, or of a wrong shape.

    A tied output matrix is dropped; so are the rotary frequencies that old checkpoints carry.
    """
    shapes = weight_shapes(config)
    given = {name: value for name, value in tensors.items() if not name.endswith("rotary_emb.inv_freq")}
    if OUTPUT not in shapes:
        given.pop(OUTPUT, None)
    missing = [name for name in shapes if name not in given]
    extra = [name for name in given if name not in shapes]
    if missing or extra:
        parts = [f"{kind} {_some(names)}" for kind, names in (("missing", missing), ("unknown", extra)) if names]
        raise UserError(f"{where}: {' and '.join(parts)}; save all tensors of {config.architecture} under their HF names")
    checked: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        value = given[name]
        tensor = value if isinstance(value, Tensor) else torch.as_tensor(value)
        if tuple(tensor.shape) != shape:
            raise UserError(f"{where}: {name} has shape {tuple(tensor.shape)} but the config asks {shape}; use matching files")
        checked[name] = tensor.detach().to(torch.float32)
    return checked


def load_weights(folder: str | Path) -> dict[str, Tensor]:
    """All tensors of an HF folder (one safetensors file, or shards with an index), in float32, checked against its config.

    A folder with a LoRA adapter gives its base's weights with the adapter merged into them.
    """
    config = read_config(folder)
    path = Path(folder)
    adapter = read_adapter(path)
    if adapter is not None:
        if not (adapter.base / "config.json").is_file():
            raise UserError(
                f"the adapter in {path} needs its base model {adapter.base}, which is no model folder; put it back there, or "
                f"write where it is now as base_model_name_or_path into {path / 'adapter_config.json'}"
            )
        return merged_weights(path, adapter, load_weights(adapter.base))
    if isinstance(config, Foreign):
        return config.load()
    index, single = path / "model.safetensors.index.json", path / "model.safetensors"
    files = [single]
    if index.is_file():
        try:
            files = [path / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        except (ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{index} is no index of shards ({error!r}); save the model again") from error
    tensors: dict[str, Tensor] = {}
    for file in files:
        if not file.is_file():
            raise UserError(f"model folder {str(path)!r} lacks {file.name}; save the model as safetensors")
        try:
            tensors |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} cannot be read ({error}); it is broken or half written: save or copy it again") from error
    return check_weights(config, tensors, str(path))


def save_weights(
    folder: str | Path, config_json: Mapping[str, Any] | ModelConfig | Foreign, tensors: Mapping[str, Tensor]
) -> None:
    """Writes `config.json` and `model.safetensors` as transformers does; tied weights are stored once."""
    if isinstance(config_json, Foreign):
        config_json.save(Path(folder), check_weights(config_json, tensors, str(folder)))
        return
    config = save_config(folder, config_json)
    path = Path(folder)
    checked = {name: tensor.contiguous() for name, tensor in check_weights(config, tensors, str(path)).items()}
    save_file(checked, path / "model.safetensors", metadata={"format": "pt"})


def save_config(folder: str | Path, config_json: Mapping[str, Any] | ModelConfig | Foreign) -> ModelConfig | Foreign:
    """Writes `config.json` alone, and gives what it says."""
    if isinstance(config_json, Foreign):
        config_json.config.save_pretrained(folder)
        return config_json
    data = config_json.to_json() if isinstance(config_json, ModelConfig) else dict(config_json)
    config = ModelConfig.from_json(data)
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / "config.json").write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return config


def init_weights(config: ModelConfig, seed: int, *, std: float = 0.02) -> dict[str, Tensor]:
    """Matrices drawn from normal(0, std), norms one, biases zero; a function of the config and `seed` alone."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, shape in weight_shapes(config).items():
        if len(shape) == 2:
            tensors[name] = torch.randn(shape, generator=generator) * std
        else:
            tensors[name] = torch.zeros(shape) if name.endswith(".bias") else torch.ones(shape)
    return tensors


def digest_weights(tensors: Mapping[str, Tensor]) -> str:
    """16 hex digits over names, shapes, types and bytes, in whatever order the dict holds them."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
