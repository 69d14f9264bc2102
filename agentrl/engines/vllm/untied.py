"""A copy of a model folder whose output matrix is a tensor of its own: `python -m agentrl.engines.vllm.untied FOLDER COPY`.

For vLLM on a CPU, which packs the output matrix of a tied model when it loads it, and goes on with that one when new weights
are loaded (0.32.0).
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from agentrl.errors import AgentRLError, UserError


def untied(folder: Path, copy: Path) -> Path:
    """Writes the copy, and gives it. `UserError` if `copy` is there already, or the model is not tied."""
    from agentrl.transformer.weights import EMBEDDING, OUTPUT, load_weights, save_weights

    weights = load_weights(folder)
    if OUTPUT in weights:
        raise UserError(f"{folder} has an output matrix of its own; serve it as it is")
    if copy.exists():
        raise UserError(f"{copy} is there already; give another folder, or delete it")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"tie_word_embeddings": False}
    save_weights(copy, config, weights | {OUTPUT: weights[EMBEDDING].clone()})
    (copy / "model.safetensors").chmod(0o644)
    for file in folder.iterdir():
        if file.is_file() and file.suffix in (".json", ".jinja", ".model", ".txt") and not (copy / file.name).exists():
            shutil.copyfile(file, copy / file.name)
    return copy


def main(argv: Sequence[str] | None = None) -> int:
    """From the shell."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 2:
        sys.stderr.write("usage: python -m agentrl.engines.vllm.untied FOLDER COPY\n")
        return 2
    try:
        untied(Path(arguments[0]), Path(arguments[1]))
    except AgentRLError as error:
        sys.stderr.write(f"untied: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
