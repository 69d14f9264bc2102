"""Where each policy's weights and tokenizer are: a run's last checkpoints, a model folder, or what the experiment says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agentrl.errors import UserError
from agentrl.experiment import Experiment, Policy
from agentrl.rendering.contract import Renderer


def checkpoints(run: Path, policy: str) -> list[Path]:
    """A policy's checkpoints in a run folder, oldest first."""
    return sorted((run / "checkpoints" / policy).glob("step-*[0-9]"))


def models_of(experiment: Experiment[Any, Any], policies: str | Path | None) -> dict[str, Path]:
    """The folder of each policy by name. `policies` is a run, a model folder for all, or None for what they start from."""
    named = experiment.by_name
    if policies is None:
        return {name: Path(policy.model) for name, policy in named.items()}
    folder = Path(policies)
    if (folder / "experiment.json").is_file():
        return {name: next(reversed(checkpoints(folder, name)), Path(policy.model)) for name, policy in named.items()}
    if (folder / "config.json").is_file():
        return dict.fromkeys(named, folder)
    raise UserError(f"{folder} is neither a run nor a model folder; give the --out of a training or a folder with config.json")


def open_renderer(policy: Policy, folder: Path) -> Renderer:
    """The renderer of a policy's model folder; `UserError` if there is none."""
    if not str(folder) or folder == Path():
        what = f"policy {policy.name!r} has no model"
        raise UserError(f"{what}; set Policy({policy.name!r}, model=FOLDER) or --set policies.model=FOLDER")
    from agentrl.rendering.template import TemplateRenderer  # brings tokenizers and jinja2

    return TemplateRenderer.from_folder(folder, history=policy.history, parser=policy.parser or None)
