"""A real run of two steps, that tests look at and do not change."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from agentrl import train
from tests.train.small import small, tiny_model


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("view")
    experiment = small(tiny_model(folder / "model"), steps=2)
    asyncio.run(train(replace(experiment, checkpoint_every=1, keep_checkpoints=1), out=folder / "rl", sinks=[]))
    return folder / "rl"
