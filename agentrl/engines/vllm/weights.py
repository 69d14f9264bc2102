"""What a model folder holds, and what vLLM would die of: a reload that fails takes its engine with it, so look before.

Only headers of safetensors files are read: eight bytes of length, then JSON of names, dtypes and shapes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrl.engines.contract import Weights
from agentrl.errors import UserError

FLOATS = frozenset({"F64", "F32", "F16", "BF16", "torch.float64", "torch.float32", "torch.float16", "torch.bfloat16"})
"""Of these it makes its own dtype as it loads."""
TIED = "lm_head.weight"
SHOWN = 5

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Served:
    """The model folder that the server serves, as seen from here: its vocabulary, and its tensors' shapes by name."""

    vocab_size: int
    shapes: Shapes
    tied: bool

    @classmethod
    def read(cls, folder: Path) -> Served:
        """`UserError` for a folder without config.json or without safetensors."""
        file = folder / "config.json"
        if not file.is_file():
            raise UserError(f"the model folder {str(folder)!r} is not visible from here; pass model=FOLDER, as it is seen here")
        config = json.loads(file.read_text())
        text = config if "vocab_size" in config else config["text_config"]
        tied = bool(config["tie_word_embeddings"]) if "tie_word_embeddings" in config else True
        return cls(int(text["vocab_size"]), headers(folder), tied)

    def check(self, given: Shapes, what: str) -> None:
        """`UserError` unless names and shapes are those of the served model."""
        mine, theirs = dict(self.shapes), dict(given)
        if self.tied:  # a tied head is in some checkpoints and not in others; it is never loaded
            mine.pop(TIED, None)
            theirs.pop(TIED, None)
        wrong = [f"{name} is missing" for name in mine if name not in theirs]
        wrong += [f"{name} is unknown to it" for name in theirs if name not in mine]
        wrong += [
            f"{name} has shape {theirs[name]}, not {shape}" for name, shape in mine.items() if theirs.get(name, shape) != shape
        ]
        if wrong:
            more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
            raise UserError(
                f"{what} does not fit the served model: {'; '.join(wrong[:SHOWN])}{more}; nothing was sent, for the server "
                "dies of weights that it cannot load. Publish all tensors of this model by their checkpoint names"
            )


def headers(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes in all safetensors files of a folder, by name; `UserError` for what is none, or no float."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{str(folder)!r} holds no *.safetensors that could be seen from here; vLLM would die of loading it")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        for name, entry in _header(file).items():
            if name == "__metadata__":
                continue
            if entry["dtype"] not in FLOATS:
                raise UserError(f"{file}: {name} is {entry['dtype']}; weights are floats ({', '.join(sorted(FLOATS)[:4])})")
            shapes[name] = tuple(entry["shape"])
    return shapes


def _header(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        try:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length if length < file.stat().st_size else 0))
            end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} is no safetensors file; write it again") from error
    if 8 + length + end != file.stat().st_size:
        raise UserError(f"{file} is {file.stat().st_size} bytes, its header says {8 + length + end}; it was cut short")
    return header


def absolute(folder: Path) -> str:
    """How the server is told of a folder: it has another working directory."""
    return str(folder.absolute())


def adapter_rank(folder: Path) -> int:
    """The rank of the LoRA adapter in a folder of peft's layout; `UserError` if there is none."""
    file = folder / "adapter_config.json"
    if not file.is_file():
        raise UserError(f"{str(folder)!r} is no adapter's folder that could be seen from here: it has no adapter_config.json")
    headers(folder)
    return int(json.loads(file.read_text())["r"])


def shapes_of(weights: Weights) -> dict[str, tuple[int, ...]]:
    """The shapes of tensors given by name; `UserError` for what is no tensor of floats."""
    import torch

    shapes: dict[str, tuple[int, ...]] = {}
    for name, value in weights.items():
        tensor = torch.from_numpy(value) if hasattr(value, "__array_interface__") else value
        if not isinstance(tensor, torch.Tensor):
            raise UserError(f'weights[{name!r}] is a {type(value).__name__}; pass tensors by name, or {{"path": folder}}')
        if not tensor.is_floating_point():
            raise UserError(f"weights[{name!r}] is {tensor.dtype}; weights are floats")
        shapes[name] = tuple(tensor.shape)
    return shapes


def save(weights: Weights, folder: Path) -> None:
    """One safetensors file. Tensors that share storage are written each for itself."""
    import torch
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    for name, value in weights.items():
        tensor = torch.from_numpy(value) if hasattr(value, "__array_interface__") else value
        tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()
    save_file(tensors, folder / "model.safetensors")
