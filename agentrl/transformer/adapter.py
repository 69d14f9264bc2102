"""LoRA adapters as tensors: drawn, merged into weights, and kept in peft's own format.

    adapter_config.json         rank, alpha, targets, and the folder of the base model
    adapter_model.safetensors   base_model.model.<module>.lora_A.weight [rank, in] and .lora_B.weight [out, rank]

A folder with these two is a model folder as well: `peft.PeftModel.from_pretrained` reads it, and `load_weights` gives the
merged weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from agentrl.errors import UserError

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
PREFIX = "base_model.model."
DOWN, UP = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """`tensors` by "<module>.lora_A.weight" [rank, in] and "<module>.lora_B.weight" [out, rank]."""

    base: Path
    rank: int
    alpha: float
    tensors: Mapping[str, Tensor]
    transposed: bool = False
    """Whether the base keeps its matrices as [in, out]."""


def matrices(weights: Mapping[str, Tensor], targets: Sequence[str], apart: Sequence[str]) -> list[str]:
    """The modules to adapt: those whose last name is in `targets`, or all matrices except those named in `apart`.

    `UserError` for a target that no module has.
    """
    known = [
        name.removesuffix(".weight")
        for name, tensor in weights.items()
        if name.endswith(".weight") and tensor.ndim == 2 and name not in apart
    ]
    last = {name.rpartition(".")[2] for name in known}
    unknown = [target for target in targets if target not in last]
    if unknown:
        raise UserError(f"LoRA(targets=...): the model has no matrix {', '.join(unknown)}; it has {', '.join(sorted(last))}")
    return [name for name in known if not targets or name.rpartition(".")[2] in targets]


def init_adapter(
    weights: Mapping[str, Tensor], modules: Sequence[str], rank: int, seed: int, *, transposed: bool = False
) -> dict[str, Tensor]:
    """A uniform in +-1/sqrt(in), as peft draws it, and B zero: the model does what it did."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for module in modules:
        rows, columns = weights[f"{module}.weight"].shape[:: -1 if transposed else 1]
        bound = 1 / math.sqrt(columns)
        tensors[module + DOWN] = (torch.rand(rank, columns, generator=generator) * 2 - 1) * bound
        tensors[module + UP] = torch.zeros(rows, rank)
    return tensors


def merge(
    weights: Mapping[str, Tensor], adapter: Mapping[str, Tensor], scale: float, *, transposed: bool = False
) -> dict[str, Tensor]:
    """W + scale B A in float32 where there is an adapter; every other tensor is the given one, not a copy."""
    merged = dict(weights)
    for name, down in adapter.items():
        if name.endswith(DOWN):
            weight, up = name.removesuffix(DOWN) + ".weight", adapter[name.removesuffix(DOWN) + UP]
            left, right = (down.t(), up.t()) if transposed else (up, down)
            merged[weight] = torch.addmm(weights[weight], left, right, alpha=scale)
    return merged


def write_adapter(folder: Path, adapter: Adapter) -> None:
    """Both files, as peft writes them."""
    modules = [name.removesuffix(DOWN) for name in adapter.tensors if name.endswith(DOWN)]
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(adapter.base),
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted({name.rpartition(".")[2] for name in modules}),
        "bias": "none",
        "fan_in_fan_out": adapter.transposed,
        "inference_mode": True,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = {PREFIX + name: tensor.detach().contiguous() for name, tensor in adapter.tensors.items()}
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})


def read_adapter(folder: Path) -> Adapter | None:
    """What `write_adapter` or peft wrote; None for a folder without. `UserError` for what `merge` cannot do."""
    file = folder / CONFIG
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        kind, base, rank, alpha = (config[key] for key in ("peft_type", "base_model_name_or_path", "r", "lora_alpha"))
        tensors = load_file(folder / TENSORS)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"the adapter in {folder} cannot be read ({error!r}); save or copy it again") from error
    more = [name for name in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern") if config.get(name)]
    if kind != "LORA" or more or config.get("bias", "none") != "none":
        what = ", ".join([kind, *more])
        raise UserError(f"the adapter in {folder} is {what}; only plain LoRA is read: merge it with peft's merge_and_unload()")
    found = {name.removeprefix(PREFIX): tensor.to(torch.float32) for name, tensor in tensors.items()}
    return Adapter(Path(base), int(rank), float(alpha), found, bool(config.get("fan_in_fan_out")))


def merged_weights(folder: Path, adapter: Adapter, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The base's weights with the folder's adapter in them; `UserError` if the two do not fit."""
    for name, tensor in adapter.tensors.items():
        module, at = name.removesuffix(DOWN).removesuffix(UP), int(name.endswith(DOWN) != adapter.transposed)
        weight = base.get(f"{module}.weight")
        if weight is None or weight.ndim != 2 or weight.shape[at] != tensor.shape[int(name.endswith(DOWN))]:
            raise UserError(f"the adapter in {folder} does not fit its base {adapter.base}: {name} {tuple(tensor.shape)}")
    return merge(base, adapter.tensors, adapter.alpha / adapter.rank, transposed=adapter.transposed)
