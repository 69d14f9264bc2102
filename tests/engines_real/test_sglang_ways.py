"""A real SGLang given weights by a folder and by a group, its memory released, and several policies as its adapters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from agentrl.engines.contract import Weights
from agentrl.engines.launch import sglang_command
from agentrl.engines.sglang import SGLangEngine
from agentrl.engines.sglang.weights import Way
from agentrl.testing import check_engine
from agentrl.transformer.adapter import Adapter, init_adapter, matrices, write_adapter
from agentrl.transformer.weights import load_weights
from tests.engines_real.conftest import served
from tests.engines_real.environment import perturbed, python_of

pytestmark = [pytest.mark.engines, pytest.mark.timeout(400)]

PUBLISHING = (
    "publish_changes_version_and_weights", "publish_in_flight_gives_two_spans", "publish_while_paused",
    "publish_follows_released_memory",
)  # fmt: skip
LORA = (
    "--enable-lora", "--lora-backend", "torch_native", "--max-lora-rank", "8", "--max-loras-per-batch", "4",
    "--lora-target-modules", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
)  # fmt: skip
RANK = 4


@pytest.fixture(scope="module")
def lora_url(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(sglang_command(model, python=python_of("sglang"), args=LORA), tmp_path_factory.mktemp("logs")) as url:
        yield url


@pytest.mark.parametrize("way", ["tensors", "disk", "group"])
async def test_weights_arrive_by_every_way(way: Way, sglang_url: str, model: Path) -> None:
    def make() -> SGLangEngine:
        return SGLangEngine(sglang_url, model=model, weights=way, memory_saver=True)

    held = await check_engine(make, weights=perturbed(model), only=PUBLISHING)
    assert set(held) == set(PUBLISHING)


async def test_adapters_of_one_base_hold_the_contract(lora_url: str, model: Path, tmp_path: Path) -> None:
    base = load_weights(model)
    modules = matrices(base, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), ())

    def adapter(n: int) -> Weights:
        folder, noise = tmp_path / str(n), torch.Generator().manual_seed(n)
        folder.mkdir(exist_ok=True)
        drawn = {
            name: tensor if name.endswith("lora_A.weight") else 0.5 * torch.randn(tensor.shape, generator=noise)
            for name, tensor in init_adapter(base, modules, RANK, n).items()
        }
        write_adapter(folder, Adapter(model, RANK, 2.0 * RANK, drawn))
        return {"path": folder}

    def make() -> SGLangEngine:
        return SGLangEngine(lora_url, policy="base", adapters=("a", "b"), model=model)

    held = await check_engine(make, "a", weights=adapter, others=["b"])
    assert len(held) == 39
