"""What a decoder is made of, read from the `config.json` of a Hugging Face folder.

`LlamaForCausalLM`, `MistralForCausalLM`, `Qwen2ForCausalLM` and `Qwen3ForCausalLM` are one family: pre-norm, rotary
positions, grouped-query attention, gated SiLU; they differ by biases and by the norm over each head of queries and keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentrl.episode import EMPTY_MAP
from agentrl.errors import UserError

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
ROPE_TYPES = ("default", "linear", "llama3")


class Unsupported(UserError):
    """A model that may be sound, of which the computation lacks something."""


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched: `linear` divides all, `llama3` those of long wavelength (Llama 3.1)."""

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


@dataclass(frozen=True)
class ModelConfig:
    """A dense decoder of the Llama family. Sizes are counts; `eos_ids` are the model's own end tokens, possibly none."""

    architecture: str
    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    max_positions: int
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rms_eps: float = 1e-6
    tied: bool = False
    """The output matrix is the embedding matrix."""
    eos_ids: tuple[int, ...] = ()
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    source: Mapping[str, Any] = field(default_factory=lambda: EMPTY_MAP, repr=False, compare=False)
    """The file as read, for the fields that the computation does not need."""

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise UserError(f"architecture {self.architecture!r} is not supported; use one of {', '.join(ARCHITECTURES)}")
        if self.heads % self.kv_heads:
            raise UserError(f"{self.heads} attention heads are no multiple of {self.kv_heads} key-value heads; mend the config")
        if self.head_dim % 2:
            raise UserError(f"head_dim {self.head_dim} is odd and rotary positions need pairs; mend the config")

    @property
    def qk_norm(self) -> bool:
        """Whether every head of queries and keys is normalised before the rotation."""
        return self.architecture == "Qwen3ForCausalLM"

    @classmethod
    def from_folder(cls, path: str | Path) -> ModelConfig:
        """Reads `config.json` (and the end ids of `generation_config.json`); `UserError` says what is wrong with it."""
        folder = Path(path)
        file = folder / "config.json"
        if not folder.is_dir():
            raise UserError(f"model folder {str(folder)!r} is not a folder; give one that holds config.json and *.safetensors")
        if not file.is_file():
            found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
            raise UserError(
                f"model folder {str(folder)!r} has no config.json (it has: {found}); save the model there in HF layout"
            )
        data = _read_json(file)
        generation = folder / "generation_config.json"
        more = _read_json(generation) if generation.is_file() else {}
        return cls.from_json(data, extra_eos=read_ids(more.get("eos_token_id")), where=str(file))

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, extra_eos: tuple[int, ...] = (), where: str = "config") -> ModelConfig:
        """The config of a parsed `config.json`, in the layout of transformers 4 or 5."""
        names = data.get("architectures") or ["(none)"]
        if names[0] not in ARCHITECTURES:
            raise Unsupported(f"{where}: architecture {names[0]} is not supported; use a model of {', '.join(ARCHITECTURES)}")
        _refuse(data, where)
        architecture: str = names[0]
        heads = _int(data, "num_attention_heads", where)
        hidden = _int(data, "hidden_size", where)
        theta, scaling = _rope(data, where)
        attention_bias = bool(data.get("attention_bias"))
        default_dim = 128 if architecture == "Qwen3ForCausalLM" else hidden // heads
        return cls(
            architecture=architecture,
            vocab_size=_int(data, "vocab_size", where),
            hidden_size=hidden,
            layers=_int(data, "num_hidden_layers", where),
            heads=heads,
            kv_heads=int(data.get("num_key_value_heads") or heads),
            head_dim=int(data.get("head_dim") or default_dim),
            intermediate_size=_int(data, "intermediate_size", where),
            max_positions=_int(data, "max_position_embeddings", where),
            rope_theta=theta,
            rope_scaling=scaling,
            rms_eps=float(data.get("rms_norm_eps") or 1e-6),
            tied=bool(data.get("tie_word_embeddings")),
            eos_ids=tuple(dict.fromkeys(read_ids(data.get("eos_token_id")) + extra_eos)),
            qkv_bias=architecture == "Qwen2ForCausalLM" or attention_bias,
            output_bias=architecture != "Qwen2ForCausalLM" and attention_bias,
            mlp_bias=bool(data.get("mlp_bias")) and architecture == "LlamaForCausalLM",
            source=dict(data),
        )

    def to_json(self) -> dict[str, Any]:
        """The content of a `config.json` that transformers 5 (and, but for the scaling of rope, 4) reads."""
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": self.rope_theta}
        if self.rope_scaling is not None:
            rope["rope_type"], rope["factor"] = self.rope_scaling.kind, self.rope_scaling.factor
        if self.rope_scaling is not None and self.rope_scaling.kind == "llama3":
            rope["low_freq_factor"] = self.rope_scaling.low_freq_factor
            rope["high_freq_factor"] = self.rope_scaling.high_freq_factor
            rope["original_max_position_embeddings"] = self.rope_scaling.original_max_positions
        kept = {key: value for key, value in self.source.items() if key not in ("rope_scaling", "rope_theta", "torch_dtype")}
        made = {
            "architectures": [self.architecture],
            "model_type": ARCHITECTURES[self.architecture],
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": self.rms_eps,
            "tie_word_embeddings": self.tied,
            "hidden_act": "silu",
            "rope_parameters": rope,
            "rope_theta": self.rope_theta,
            "dtype": "float32",
            "eos_token_id": list(self.eos_ids) if len(self.eos_ids) > 1 else self.eos_ids[0] if self.eos_ids else None,
        }
        if self.architecture != "Qwen2ForCausalLM":
            made["attention_bias"] = self.qkv_bias
        if self.architecture == "LlamaForCausalLM":
            made["mlp_bias"] = self.mlp_bias
        return kept | made


def _read_json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is no readable JSON ({error}); save the model again") from error
    if not isinstance(data, dict):
        raise UserError(f"{file} holds a {type(data).__name__}, not an object; save the model again")
    return data


def _int(data: Mapping[str, Any], key: str, where: str) -> int:
    value = data.get(key)
    if not isinstance(value, int) or value <= 0:
        raise UserError(f"{where}: {key} must be a positive whole number, got {value!r}; mend the config")
    return value


def read_ids(value: int | list[int] | None) -> tuple[int, ...]:
    """End tokens as the files write them: one, several or none."""
    return () if value is None else tuple(value) if isinstance(value, list) else (value,)


def _refuse(data: Mapping[str, Any], where: str) -> None:
    """Features of the family that the computation lacks; ignoring one would give wrong log-probs in silence."""
    act = data.get("hidden_act") or "silu"
    if act not in ("silu", "swish"):
        raise Unsupported(f"{where}: hidden_act {act!r} is not supported; only silu is")
    kinds, always = set(data.get("layer_types") or ()), data.get("model_type") == "mistral"
    if kinds - {"full_attention"} or ((always or data.get("use_sliding_window")) and data.get("sliding_window")):
        raise Unsupported(f"{where}: sliding-window attention is not supported; use a model with full attention in every layer")
    if data.get("quantization_config"):
        raise UserError(f"{where}: quantised weights are not supported; save the model in float32 or bfloat16")


def _rope(data: Mapping[str, Any], where: str) -> tuple[float, RopeScaling | None]:
    """(theta, scaling) of `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (4)."""
    parameters: dict[str, Any] = {"rope_theta": data.get("rope_theta")}
    parameters |= data.get("rope_scaling") or {}
    parameters |= data.get("rope_parameters") or {}
    theta = float(parameters.get("rope_theta") or 10000.0)
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind not in ROPE_TYPES:
        raise Unsupported(f"{where}: rope type {kind!r} is not supported; only {', '.join(ROPE_TYPES)} are")
    if (parameters.get("partial_rotary_factor") or 1.0) != 1.0:
        raise Unsupported(f"{where}: partial rotary positions are not supported; use a model that rotates whole heads")
    if kind == "default":
        return theta, None
    wanted = ("factor",) if kind == "linear" else ("factor", "low_freq_factor", "high_freq_factor")
    missing = [name for name in wanted if parameters.get(name) is None]
    if missing:
        raise UserError(f"{where}: rope type {kind!r} lacks {', '.join(missing)}; mend the config")
    if kind == "linear":
        return theta, RopeScaling("linear", float(parameters["factor"]))
    original = parameters.get("original_max_position_embeddings") or data.get("max_position_embeddings")
    low, high = float(parameters["low_freq_factor"]), float(parameters["high_freq_factor"])
    return theta, RopeScaling("llama3", float(parameters["factor"]), low, high, int(original or 0))
