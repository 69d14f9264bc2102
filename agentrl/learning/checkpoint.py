"""A learner's folder: weights in Hugging Face layout, the optimiser's state, and a manifest that tells if all is whole.

    config.json  model.safetensors  tokenizer files       what transformers and any engine load; with LoRA, in the place of
    adapter_config.json  adapter_model.safetensors         model.safetensors, an adapter that names the folder of its base
    learner.state                                          the optimiser's state by name
    value_head.state                                       a critic's head
    learner.json                                           version, counts, settings, size and digest of each other file

The manifest is written last, the folder under another name, and renamed when everything is on disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from agentrl import faults
from agentrl.episode import Version
from agentrl.errors import LearnerError
from agentrl.transformer.adapter import Adapter, read_adapter, write_adapter
from agentrl.transformer.config import ModelConfig
from agentrl.transformer.foreign import Foreign
from agentrl.transformer.weights import digest_weights, load_weights, save_config, save_weights

FORMAT = 1
MANIFEST = "learner.json"
STATE = "learner.state"
"""In the format of safetensors, but not by that name: SGLang and vLLM read every *.safetensors of a folder as weights."""
HEAD = "value_head"
"""What the names of a critic's head begin with; its file is named as `STATE` is, for the same reason."""
COPIED = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", "vocab.json", "merges.txt", "tokenizer.model", "generation_config.json",
)  # fmt: skip
"""Files of the model's folder that go along, where they exist."""


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """What a folder holds. `settings` is the optimiser's `repr`, for people and for the check on restoring."""

    version: Version
    updates: int
    settings: str
    weights: Mapping[str, Tensor]
    """Of the whole model, an adapter merged in (then not written), and of a critic's head."""
    state: Mapping[str, Tensor]
    adapter: Adapter | None = None


def save(folder: Path, checkpoint: Checkpoint, config: ModelConfig | Foreign, model: Path) -> None:
    """Writes the folder whole or not at all; an older one of the same name is replaced. `LearnerError` if the disk refuses.

    `model` is the folder that the tokenizer's files are copied from.
    """
    folder = Path(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".draft", dir=folder.parent))
        try:
            _write(draft, checkpoint, config, model)
            draft.chmod(0o755)  # mkdtemp's is for its owner alone
            faults.point("checkpoint.written")
            _replace(draft, folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise LearnerError(
            f"checkpoint {folder} could not be written ({error}); free or mend the disk and save again"
        ) from error


def load(folder: Path) -> Checkpoint:
    """Reads the folder back; `LearnerError` names the file that is missing, broken or changed, and what to do."""
    folder = Path(folder)
    manifest = _read_manifest(folder)
    for name, entry in manifest["files"].items():
        file = folder / name
        if not file.is_file():
            raise LearnerError(
                f"checkpoint {folder} lacks {name}; it was copied in part: copy it whole, or restore an earlier one"
            )
        if file.stat().st_size != entry["bytes"] or _digest(file) != entry["digest"]:
            raise LearnerError(
                f"checkpoint file {file} is not as it was saved ({file.stat().st_size} bytes, {entry['bytes']} were written); "
                "restore an earlier checkpoint, or open the folder as a model to begin from its weights alone"
            )
    weights = load_weights(folder) | read_head(folder)
    version = Version.parse(manifest["version"])
    if digest_weights(weights) != version.digest:
        raise LearnerError(f"the weights in {folder} are not those of {version}; restore an earlier checkpoint")
    try:
        state = load_file(folder / STATE)
    except SafetensorError as error:
        raise LearnerError(f"checkpoint file {folder / STATE} cannot be read ({error}); restore an earlier one") from error
    return Checkpoint(version, int(manifest["updates"]), str(manifest["optimiser"]), weights, state, read_adapter(folder))


def read_head(folder: Path) -> dict[str, Tensor]:
    """The head in a critic's checkpoint; empty for any other folder."""
    file = folder / f"{HEAD}.state"
    return load_file(file) if file.is_file() else {}


def saved_version(folder: Path, digest: str) -> Version | None:
    """The version that a checkpoint says it holds, if its weights are those it was saved with."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return None
    version = Version.parse(json.loads(manifest.read_text(encoding="utf-8"))["version"])
    return version if version.digest == digest else None


def _write(draft: Path, checkpoint: Checkpoint, config: ModelConfig | Foreign, model: Path) -> None:
    if checkpoint.adapter is None:
        head = {name: tensor for name, tensor in checkpoint.weights.items() if name.startswith(HEAD)}
        save_weights(draft, config, {name: tensor for name, tensor in checkpoint.weights.items() if name not in head})
        if head:
            save_file(head, draft / f"{HEAD}.state")
    else:
        save_config(draft, config)
        write_adapter(draft, checkpoint.adapter)
    for name in COPIED:
        if (model / name).is_file():
            shutil.copyfile(model / name, draft / name)
    save_file({name: tensor.contiguous() for name, tensor in checkpoint.state.items()}, draft / STATE)
    files = {file.name: {"bytes": file.stat().st_size, "digest": _digest(file)} for file in sorted(draft.iterdir())}
    manifest = {
        "format": FORMAT,
        "version": str(checkpoint.version),
        "updates": checkpoint.updates,
        "optimiser": checkpoint.settings,
        "files": files,
    }
    (draft / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    for path in (*draft.iterdir(), draft):
        _sync(path)


def _replace(draft: Path, folder: Path) -> None:
    """Puts the draft in the folder's place. Between the two renames the folder is absent, never half of each."""
    old = draft.with_suffix(".old")
    if folder.exists():
        folder.rename(old)
    draft.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    if not file.is_file():
        raise LearnerError(
            f"{folder} has no {MANIFEST}, so it is no learner's checkpoint; give a folder that a learner saved, "
            "or open this one as a model to begin from its weights alone"
        )
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        kind = manifest["format"]
        _ = manifest["version"], manifest["updates"], manifest["optimiser"], manifest["files"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LearnerError(f"checkpoint file {file} cannot be read ({error!r}); restore an earlier checkpoint") from error
    if kind != FORMAT:
        raise LearnerError(
            f"checkpoint file {file} has format {kind}, this agentrl reads {FORMAT}; use the version that wrote it"
        )
    return manifest
