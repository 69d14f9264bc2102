"""What a running server is: read when the engine is entered, and compared with what this side believes of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from agentrl.engines.folders import ModelFolder, adapter_config, vocab_size_of
from agentrl.engines.http import Call, Refused
from agentrl.errors import EngineError, UserError

KNOWN_VERSIONS = frozenset({"0.5.23"})
"""Versions of SGLang whose wire was recorded and is held by tests."""

PROBE = "Zürich 2048\n\tif (a<=b): 世界 \N{GRINNING FACE} return<|im_end|></s> the lazy dogs"
"""Tokenizers of different models cut this differently."""


@dataclass(frozen=True, slots=True)
class Server:
    """What a server says of itself. `ranks` is the number of its tensor-parallel ranks."""

    version: str
    weight_version: str
    max_context: int
    vocab_size: int
    ranks: int
    device: str
    deterministic: bool
    adapters: bool
    memory: bool
    keeps_weights: bool
    """They outlast a release of its memory."""
    streams: bool
    widest_mask: int
    model: ModelFolder | None
    """Its model's folder, where that is seen from here."""


async def greet(
    call: Call, name: str, known: frozenset[str], *, vocab_size: int | None, model: str | Path | None, share_weights: bool
) -> Server:
    """`UserError` for a server that is not known, or serves another model or tokenizer than the folder `model` holds.

    `share_weights`: tensors will be published to it, which it takes from one process only if it is not split further.
    """
    try:
        info = await call("GET", "/server_info")
        said = await call("GET", "/model_info")
        models = await call("GET", "/v1/models")
    except Refused as error:
        if error.status != 404:
            raise
        raise UserError(f"{name} answers, but not as SGLang does ({error}); give the URL of the server's own API") from error
    try:
        found = info["version"]
        if found not in known:
            raise UserError(
                f"{name} has version {found}; known are {', '.join(sorted(known))}. Start one of those, or hold this one with "
                "agentrl.testing.check_engine and pass known_versions"
            )
        if share_weights and (info["dp_size"] > 1 or info["pp_size"] > 1):
            raise UserError(
                f"{name} has dp_size {info['dp_size']} and pp_size {info['pp_size']}; new weights reach one replica of one "
                "stage only: start one server for each replica, with --tp-size alone"
            )
        folder = Path(info["model_path"]) if model is None else _base_of(Path(model))
        served = _read_folder(folder)
        if model is not None:
            _compare_model(name, said, folder)
            await _compare_tokenizer(call, name, folder)
        if vocab_size is None and served is None:
            raise UserError(f"{name}: its model folder {str(folder)!r} is not visible from here; pass vocab_size or model")
        return Server(
            version=found,
            weight_version=said["weight_version"],
            # A prompt longer than max_req_input_len is refused, though it fits the model.
            max_context=min(int(models["data"][0]["max_model_len"]), int(info["max_req_input_len"]) + 1),
            vocab_size=vocab_size or cast(ModelFolder, served).vocab_size,
            ranks=int(info["tp_size"]),
            device=info["device"],
            deterministic=bool(info["enable_deterministic_inference"]),
            adapters=bool(info["enable_lora"]),
            memory=bool(info["enable_memory_saver"]),
            keeps_weights=bool(info["enable_weights_cpu_backup"]),
            streams=not info["incremental_streaming_output"],
            widest_mask=int(info["sampling_mask_max_tokens"]),
            model=served,
        )
    except (KeyError, TypeError, IndexError) as error:
        raise EngineError(f"{name}: its info lacks {error}; is this an SGLang server?") from error


def _base_of(folder: Path) -> Path:
    """The folder itself, or the base of the adapter in it."""
    if (folder / "config.json").is_file() or not (folder / "adapter_config.json").is_file():
        return folder
    return Path(adapter_config(folder)["base_model_name_or_path"])


def _read_folder(folder: Path) -> ModelFolder | None:
    """None for a folder that is not seen from here; without its shapes for one that holds no safetensors."""
    file = folder / "config.json"
    if not file.is_file():
        return None
    try:
        return ModelFolder.read(folder)
    except UserError:
        return ModelFolder(vocab_size_of(json.loads(file.read_text())), {}, tied=False)


def _compare_model(name: str, said: Any, folder: Path) -> None:
    file = folder / "config.json"
    if not file.is_file():
        return
    config = json.loads(file.read_text())
    for key in ("architectures", "model_type"):
        if key in config and config[key] != said[key]:
            raise UserError(
                f"{name} serves another model: its {key} is {_shown(said[key])} (from {said['model_path']}), that of {folder} "
                f"is {_shown(config[key])}; start it with --model-path {folder}, or open the policy with the model it serves"
            )


def _shown(value: Any) -> str:
    return ", ".join(map(str, cast("Sequence[Any]", value))) if isinstance(value, list) else str(value)


async def _compare_tokenizer(call: Call, name: str, folder: Path) -> None:
    file = folder / "tokenizer.json"
    if not file.is_file():
        return
    from tokenizers import Tokenizer

    try:
        told = await call("POST", "/v1/tokenize", {"prompt": PROBE, "add_special_tokens": False})
    except Refused:
        return  # it was started without a tokenizer, and is asked in ids alone
    mine = Tokenizer.from_file(str(file)).encode(PROBE, add_special_tokens=False).ids
    if told["tokens"] != mine:
        at = next((n for n, pair in enumerate(zip(told["tokens"], mine, strict=False)) if pair[0] != pair[1]), len(mine))
        raise UserError(
            f"{name} has another tokenizer than {folder}: of {PROBE!r} it makes {told['tokens'][at : at + 4]} at token {at}, "
            f"the folder {mine[at : at + 4]}; start it with the same folder, or give the policy the server's model"
        )
