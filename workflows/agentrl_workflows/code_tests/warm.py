"""The model `code_tests`: 0.7 million random weights, warmed up on demonstrations at its first use, and kept.

`--set policies.model=code_tests` calls `warm_model()`; the folder is in `$AGENTRL_CACHE` or `~/.cache/agentrl`.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from agentrl import train
from agentrl.errors import UserError
from agentrl_workflows.code_tests.experiment import warm_up
from agentrl_workflows.code_tests.model import make_model
from agentrl_workflows.smollm2 import cache

log = logging.getLogger("agentrl.models")

EDITION = 1
"""Raised when the model would come out otherwise."""


def warm_model() -> Path:
    """The model's folder, made at the first call: a minute of one core. `UserError` if that fails, with why."""
    folder = cache() / f"code_tests-{EDITION}"
    if (folder / "config.json").is_file():
        return folder
    log.warning("code_tests: making a model and warming it up in %s, once (a minute of one core)", folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".code_tests.", suffix=".draft", dir=folder.parent) as place:
            # a process of its own: this one is in the middle of opening a runtime, and runs its event loop
            command = [sys.executable, "-m", __name__, place]
            made = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
            if made.returncode:
                why = made.stderr.strip().splitlines() or [f"exit status {made.returncode}"]
                raise UserError(f"the model code_tests could not be warmed up: {why[-1]}")
            if not folder.exists():  # another process may have been faster
                Path(place, "warm").rename(folder)
    except OSError as error:
        raise UserError(
            f"the model code_tests cannot be kept in {folder} ({error}); make room, or set AGENTRL_CACHE"
        ) from error
    return folder


def main(place: Path) -> None:
    """Makes and warms up the model in `place/warm`."""
    learned = asyncio.run(train(warm_up(make_model(place / "model")), out=place / "run"))
    shutil.copytree(learned.policies["coder"], place / "warm", ignore=shutil.ignore_patterns("learner.*"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
