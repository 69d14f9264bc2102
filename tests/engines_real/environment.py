"""Where the engines are, and weights to give them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from agentrl.transformer.weights import load_weights

ENVIRONMENTS = Path(__file__).parents[2] / ".engines"


def python_of(engine: str) -> str:
    """The Python of an engine's environment."""
    return os.environ.get(f"AGENTRL_{engine.upper()}_PYTHON") or str(ENVIRONMENTS / engine / "bin" / "python")


def perturbed(model: Path) -> Callable[[int], dict[str, Any]]:
    """Weights like the model's, others for every number."""
    tensors = load_weights(model)

    def weights(n: int) -> dict[str, Any]:
        noise = torch.Generator().manual_seed(n)
        return {name: value * (1 + 0.5 * torch.rand(value.shape, generator=noise)) for name, value in tensors.items()}

    return weights
