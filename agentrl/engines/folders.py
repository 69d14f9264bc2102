"""Folders of weights: what a model's or an adapter's holds, whether weights fit a model, and how they are written.

Servers die of weights that they cannot load, so clients look before they send. Only headers of safetensors files are read:
eight bytes of length, then JSON of names, dtypes and shapes.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from agentrl.engines.contract import Weights
from agentrl.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""Of these a server makes its own dtype as it loads."""
EMBEDDING, TIED = "model.embed_tokens.weight", "lm_head.weight"
SHOWN = 5

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What a model's folder holds: the size of its vocabulary, and its tensors' shapes by name (empty = not known)."""

    vocab_size: int
    shapes: Shapes
    tied: bool

    @classmethod
    def read(cls, folder: Path) -> ModelFolder:
        """`UserError` for a folder without config.json or without safetensors."""
        file = folder / "config.json"
        if not file.is_file():
            raise UserError(f"the model folder {str(folder)!r} is not visible from here; pass model=FOLDER, as it is seen here")
        config = json.loads(file.read_text())
        tied = bool(config["tie_word_embeddings"]) if "tie_word_embeddings" in config else True
        return cls(vocab_size_of(config), shapes_in(folder), tied)

    def holds_head_of(self, given: Shapes) -> bool:
        """Whether weights of these shapes have the output matrix that this model has apart from its embedding."""
        return TIED in given or TIED not in self.shapes

    def with_head(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors, with the embedding as the output matrix where this model has one of its own and they have none."""
        embedding = tensors.get(EMBEDDING)
        if embedding is None or self.holds_head_of(shapes_of(tensors)):
            return tensors
        return tensors | {TIED: embedding.clone()}

    def check(self, given: Shapes, what: str) -> None:
        """`UserError` unless names and shapes are those of this model, as far as they are known."""
        if not self.shapes:
            return
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


def vocab_size_of(config: Mapping[str, Any]) -> int:
    """By a model's config.json; one that also sees or hears has it among those of its text model."""
    return int((config if "vocab_size" in config else config["text_config"])["vocab_size"])


def shapes_in(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes in all safetensors files of a folder, by name; `UserError` for what is none, or no float."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"{str(folder)!r} holds no *.safetensors that could be seen from here; a server would die of loading it"
        )
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        for name, entry in _header(file).items():
            if name == "__metadata__":
                continue
            if entry["dtype"] not in FLOATS:
                raise UserError(f"{file}: {name} is {entry['dtype']}; weights are floats ({', '.join(sorted(FLOATS))})")
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


def path_in(weights: Weights) -> Path | None:
    """The folder, absolute, of weights that are published as `{"path": folder}`; None for tensors by name."""
    path = weights["path"] if set(weights) == {"path"} else None
    return Path(path).absolute() if isinstance(path, str | Path) else None


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors."""
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def adapter_in(weights: Weights, policy: str) -> Path:
    """The folder of an adapter; `UserError` for what is published in another form."""
    path = path_in(weights)
    if path is None:
        raise UserError(f'policy {policy!r} is an adapter; publish {{"path": folder with adapter_config.json}}')
    return path


def adapter_config(folder: Path) -> Mapping[str, Any]:
    """The config of the LoRA adapter in a folder of peft's layout; `UserError` if there is none."""
    file = folder / "adapter_config.json"
    if not file.is_file():
        raise UserError(f"{str(folder)!r} is no adapter's folder: it has no adapter_config.json; write it as peft does")
    return json.loads(file.read_text())


def tensors_of(weights: Weights) -> dict[str, Tensor]:
    """Weights as tensors by name, not copied; `UserError` for what is none, or no float."""
    import torch

    if not weights:
        raise UserError('no weights to publish; pass tensors by name, or {"path": folder}')
    tensors: dict[str, Tensor] = {}
    for name, value in weights.items():
        tensor = torch.from_numpy(np.require(value, requirements="W")) if isinstance(value, np.ndarray) else value
        if not isinstance(tensor, torch.Tensor):
            raise UserError(f'weights[{name!r}] is a {type(value).__name__}; pass tensors by name, or {{"path": folder}}')
        if not tensor.is_floating_point():
            raise UserError(f"weights[{name!r}] is {tensor.dtype}; weights are floats")
        tensors[name] = tensor.detach()
    return tensors


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """By name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@asynccontextmanager
async def written(tensors: Mapping[str, Tensor], exchange: str | Path | None) -> AsyncGenerator[Path]:
    """A new folder below `exchange` with the tensors in one safetensors file, gone when the block ends."""
    folder = await asyncio.to_thread(_new_folder, exchange)
    try:
        await asyncio.to_thread(_write, tensors, folder)
        yield folder
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _new_folder(exchange: str | Path | None) -> Path:
    try:
        return Path(tempfile.mkdtemp("", "agentrl-weights-", exchange)).absolute()
    except OSError as error:
        raise UserError(f"no folder can be made below exchange={str(exchange)!r}: {error}") from error


def _write(tensors: Mapping[str, Tensor], folder: Path) -> None:
    from safetensors.torch import save_file

    # Copies, for save_file takes no two tensors that share their storage.
    copies = {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    save_file(copies, folder / "model.safetensors")
