"""From the settings of `SGLang` to a fleet: servers that run, or that are launched with it."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from agentrl.engines.fleet.engine import SGLangFleet
from agentrl.engines.launch import sglang_command
from agentrl.errors import UserError

if TYPE_CHECKING:
    from agentrl.engines.specs import SGLang

log = logging.getLogger(__name__)


def open_fleet(spec: SGLang, policy: str, model: Path) -> SGLangFleet:
    """Not started yet. `UserError` for settings that do not go together."""
    if spec.launch < 0 or (spec.launch and spec.urls):
        raise UserError(f"launch={spec.launch} with urls={spec.urls}: give the number of servers to launch, or those that run")
    if spec.weights == "group":
        raise UserError('weights="group" reaches one server, and not several; use "tensors" or "disk" with launch and urls')
    if spec.adapters:
        raise UserError("several servers serve no adapters; give one running server (url=...) the adapters")
    if spec.key_env:
        raise UserError(f"servers behind the router are asked without a key; drop key_env={spec.key_env!r}, or give one url")
    commands = [
        sglang_command(model, number=number, python=spec.python, tp=spec.tp, gpus=spec.gpus, args=spec.args)
        for number in range(spec.launch)
    ]
    logs = Path(spec.logs or tempfile.mkdtemp(prefix="agentrl-engines-"))
    log.info("logs of the engine's servers go to %s", logs)
    weights = spec.weights or ("disk" if spec.launch else "tensors")
    return SGLangFleet(
        commands or spec.urls, logs=logs, policy=policy, model=model, weights=weights, exchange=spec.exchange
    )  # fmt: skip
