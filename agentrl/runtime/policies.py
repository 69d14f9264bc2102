"""Where each policy's weights and tokenizer are: a run's last checkpoints, a model folder, or what the experiment says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from agentrl.errors import UserError
from agentrl.experiment import Experiment, Policy
from agentrl.rendering.contract import Renderer
from agentrl.resolve import resolve


def checkpoints(run: Path, policy: str) -> list[Path]:
    """A policy's checkpoints in a run folder, oldest first."""
    return sorted((run / "checkpoints" / policy).glob("step-*[0-9]"))


def model_folder(policy: Policy) -> Path:
    """The folder that a policy starts from: `policy.model` itself, or what the model of that short name gives.

    A short name is an entry point of the group `agentrl.models`, or `module:name`: a function that returns a folder. It may
    take its time when it is first called. `UserError` for a name that is unknown; whether the folder is there is not asked.
    """
    given = policy.model
    if isinstance(given, Path) or not given or Path(given).expanduser().is_dir() or (os.sep in given and ":" not in given):
        return Path(given).expanduser()
    try:
        made_by = resolve(given, group="agentrl.models")
    except UserError as error:
        raise UserError(
            f"policy {policy.name!r}: {given!r} is neither a model folder nor the name of a model: {error}"
        ) from error
    if not callable(made_by):
        raise UserError(f"policy {policy.name!r}: {given!r} is {made_by!r:.80}, not a function that gives a model folder")
    made: Any = made_by()
    return Path(made)


def models_of(experiment: Experiment[Any, Any], policies: str | Path | None) -> dict[str, Path]:
    """The folder of each policy by name. `policies` is a run, a model folder for all, or None for what they start from.

    A reference stays what it is.
    """
    named = experiment.served
    if policies is None:
        return {name: model_folder(policy) for name, policy in named.items()}
    folder = Path(policies)
    if (folder / "experiment.json").is_file():
        saved = {name: checkpoints(folder, name) for name in named}
        return {name: saved[name][-1] if saved[name] else model_folder(policy) for name, policy in named.items()}
    if (folder / "config.json").is_file():
        own = experiment.by_name
        return {name: folder if name in own else model_folder(policy) for name, policy in named.items()}
    raise UserError(f"{folder} is neither a run nor a model folder; give the --out of a training or a folder with config.json")


def open_renderer(policy: Policy, folder: Path) -> Renderer:
    """The renderer of a policy's model folder; `UserError` if there is none."""
    if folder == Path():
        what = f"policy {policy.name!r} has no model"
        raise UserError(f"{what}; set Policy({policy.name!r}, model=FOLDER) or --set policies.model=FOLDER")
    from agentrl.rendering.template import TemplateRenderer  # brings tokenizers and jinja2

    return TemplateRenderer.from_folder(folder, history=policy.history, parser=policy.parser or None)
