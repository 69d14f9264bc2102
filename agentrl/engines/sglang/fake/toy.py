"""A tiny language model in numpy with real weights: what the fake server serves when it is given nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from agentrl.episode import Sampling
from agentrl.errors import UserError

Row = npt.NDArray[np.float64]


class ToyModel:
    """logits = head @ tanh(embed[last] + embed[last but one] / 2); the tensors `embed` and `head` are (vocab, width) float32.

    Every number it gives can be computed again from its tensors, and publishing other tensors changes them.
    """

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self.load(tensors)

    @classmethod
    def random(cls, seed: int = 0, *, vocab_size: int = 320, width: int = 16) -> ToyModel:
        """Weights drawn from `seed`; logits have a standard deviation near 1."""
        return cls(random_weights(seed, vocab_size=vocab_size, width=width))

    @classmethod
    def read(cls, folder: Path) -> ToyModel:
        """The inverse of `save`; `UserError` when there is no such model."""
        if not (folder / "toy.npz").is_file():
            raise UserError(f"no toy model in {folder}; write one with ToyModel.save")
        return cls(read_tensors(folder))

    def save(self, folder: Path) -> None:
        """Writes `toy.npz`."""
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "toy.npz", embed=self.tensors["embed"], head=self.tensors["head"])

    @property
    def vocab_size(self) -> int:
        """Ids run from 0 to this, less one."""
        return len(self.tensors["embed"])

    def load(self, tensors: Mapping[str, Any]) -> None:
        """Takes new tensors, numpy or torch; `UserError` unless both are there with one shape."""
        missing = {"embed", "head"} - set(tensors)
        if missing:
            raise UserError(f"a toy model needs the tensors embed and head; {', '.join(sorted(missing))} missing")
        arrays = [tensors[name] for name in ("embed", "head")]
        embed, head = (np.array(one.numpy() if hasattr(one, "numpy") else one, np.float32) for one in arrays)
        if embed.shape != head.shape or embed.ndim != 2:
            raise UserError(f"a toy model's embed and head have one shape (vocab, width); got {embed.shape} and {head.shape}")
        self.tensors = {"embed": embed, "head": head}
        self._embed, self._head = embed.astype(np.float64), head.astype(np.float64)

    def logits(self, ids: Sequence[int]) -> Row:
        """The logits of what follows `ids`, float64."""
        hidden = self._embed[ids[-1]] + (self._embed[ids[-2]] / 2 if len(ids) > 1 else 0)
        return self._head @ np.tanh(hidden)

    def score(self, ids: Sequence[int], start: int) -> list[float]:
        """Log-probs of `ids[start:]` at temperature 1."""
        return [float(log_softmax(self.logits(ids[:at]))[ids[at]]) for at in range(start, len(ids))]


def read_tensors(folder: Path) -> dict[str, Any]:
    """The tensors of a folder: `toy.npz`, or safetensors files."""
    if (folder / "toy.npz").is_file():
        with np.load(folder / "toy.npz") as tensors:
            return dict(tensors)
    from safetensors.numpy import load_file

    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def save_adapter(folder: Path, seed: int, *, vocab_size: int = 320, width: int = 16, rank: int = 2) -> Path:
    """A LoRA adapter of the toy's head: adapter_config.json, and A (rank, width) and B (vocab, rank) in `adapter.npz`."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank}))
    down, up = rng.normal(size=(rank, width)) / width**0.5, rng.normal(size=(vocab_size, rank))
    np.savez(folder / "adapter.npz", A=down.astype(np.float32), B=up.astype(np.float32))
    return folder


def with_adapter(tensors: Mapping[str, Any], folder: Path) -> ToyModel:
    """The model whose head has the adapter merged in."""
    config = json.loads((folder / "adapter_config.json").read_text())
    with np.load(folder / "adapter.npz") as adapter:
        delta = adapter["B"] @ adapter["A"] * (config["lora_alpha"] / config["r"])
    return ToyModel({"embed": tensors["embed"], "head": tensors["head"] + delta})


def random_weights(seed: int = 0, *, vocab_size: int = 320, width: int = 16) -> dict[str, npt.NDArray[np.float32]]:
    """Tensors for a `ToyModel`."""
    rng = np.random.default_rng(seed)
    embed = rng.normal(size=(vocab_size, width)).astype(np.float32)
    return {"embed": embed, "head": (rng.normal(size=(vocab_size, width)) * (1.5 / width**0.5)).astype(np.float32)}


def log_softmax(logits: Row) -> Row:
    """Natural log of the softmax."""
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def kept(logprobs: Row, top_k: int, top_p: float, min_p: float = 0.0) -> npt.NDArray[np.bool_]:
    """The sampling mask. As in the real server's, top-k and top-p both look at the whole distribution; then min-p."""
    order = np.argsort(-logprobs, kind="stable")
    keep = np.ones(len(order), bool)
    if 0 < top_k < len(order):
        keep[order[top_k:]] = False
    if top_p < 1:
        probs = np.exp(logprobs[order])
        keep[order[np.cumsum(probs) - probs > top_p]] = False
    if min_p > 0:
        keep &= logprobs >= logprobs.max() + np.log(min_p)
    return keep


def draw(logits: Row, sampling: Sampling, noise: Row, min_p: float = 0.0) -> tuple[int, Row, npt.NDArray[np.bool_]]:
    """A token by the Gumbel trick, the log-probs it was drawn from before the mask, and the mask.

    Greedy (temperature 0 or top-k 1): the likeliest token, with log-probs at temperature 1.
    """
    if sampling.temperature == 0 or sampling.top_k == 1:
        logprobs = log_softmax(logits)
        token = int(logprobs.argmax())
        return token, logprobs, np.arange(len(logprobs)) == token
    logprobs = log_softmax(logits / sampling.temperature)
    keep = kept(logprobs, sampling.top_k, sampling.top_p, min_p)
    return int(np.where(keep, logprobs + noise, -np.inf).argmax()), logprobs, keep


def gumbel(seed: int, position: int, size: int) -> Row:
    """Counter-based noise: of (seed, position in the sequence) alone, as the server's deterministic mode has it."""
    return np.random.Generator(np.random.Philox(key=seed, counter=position << 64)).gumbel(size=size)
