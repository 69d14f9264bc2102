"""Real SGLang and vLLM servers on this machine's CPU: `make engines` makes their environments, `make test-engines` runs these.

Without AGENTRL_ENGINES=1 nothing here is collected. With it nothing is skipped: a server that does not start is a failure.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agentrl.engines.launch import Command, Server, sglang_command, vllm_command
from agentrl.engines.vllm.untied import untied
from agentrl.transformer.tiny import make_tiny_model
from tests.engines_real.environment import python_of

collect_ignore_glob = [] if os.environ.get("AGENTRL_ENGINES") == "1" else ["test_*.py"]

START_S = 300.0
CONTEXT = 512


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads of 32: vLLM has no CPU kernel for narrower ones."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return make_tiny_model(
        folder, ["capital", "of", "the"], ["search"], hidden=64, layers=2, heads=2, head_dim=32, ff=128, max_positions=CONTEXT,
        std=0.3, embedding_std=0.3,
    )  # fmt: skip


@pytest.fixture(scope="session")
def sglang_url(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(sglang_command(model, python=python_of("sglang")), tmp_path_factory.mktemp("logs")) as url:
        yield url


@pytest.fixture(scope="session")
def vllm_url(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    copy = untied(model, tmp_path_factory.mktemp("models") / "untied")
    command = vllm_command(copy, python=python_of("vllm"), args=("--max-model-len", str(CONTEXT)))
    with served(command, tmp_path_factory.mktemp("logs")) as url:
        yield url


@contextmanager
def served(command: Command, logs: Path) -> Iterator[str]:
    """The server for as long as the block lasts, which may hold event loops of its own."""
    with asyncio.Runner() as runner:
        server = Server(command, logs / f"{command.name}.log", start_s=START_S)
        runner.run(server.start())
        try:
            yield server.url
        finally:
            runner.run(server.stop())
