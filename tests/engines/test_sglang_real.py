"""The same contract against a real SGLang: set AGENTRL_SGLANG_URL and AGENTRL_SGLANG_MODEL (the folder that it serves).

What the fake gets wrong shows here, and nowhere else. The server ends with other weights than it began with.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from agentrl.engines.sglang import SGLangEngine
from agentrl.testing import check_engine
from agentrl.transformer.config import ModelConfig
from agentrl.transformer.weights import load_weights

URL, MODEL = os.environ.get("AGENTRL_SGLANG_URL", ""), os.environ.get("AGENTRL_SGLANG_MODEL", "")


@pytest.mark.skipif(not (URL and MODEL), reason="AGENTRL_SGLANG_URL and AGENTRL_SGLANG_MODEL name no server")
async def test_real_sglang_holds_the_contract() -> None:
    tensors = load_weights(MODEL)

    def perturbed(n: int) -> dict[str, Any]:
        noise = torch.Generator().manual_seed(n)
        return {name: value * (1 + 0.5 * torch.rand(value.shape, generator=noise)) for name, value in tensors.items()}

    vocab_size = ModelConfig.from_folder(MODEL).vocab_size
    held = await check_engine(lambda: SGLangEngine(URL, vocab_size=vocab_size), weights=perturbed)
    assert len(held) == 33
