"""What only a real vLLM can show: KV is recomputed under "retract" and kept in place, and adapters are what they say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from agentrl.engines.contract import Engine, GenerateRequest, Generation, ScoreRequest
from agentrl.engines.launch import vllm_command
from agentrl.engines.local import LocalEngine
from agentrl.engines.vllm import VLLMEngine
from agentrl.episode import Sampling, Version, token_ids
from agentrl.testing import check_engine
from tests.engines_real.conftest import CONTEXT, served
from tests.engines_real.environment import perturbed, python_of

pytestmark = [pytest.mark.engines, pytest.mark.timeout(400)]

PROMPT = token_ids(range(60, 80))
SCALE, RANK = 2.0, 4
SCORED = ("publish_of_an_adapter_leaves_the_others", "publish_of_an_adapter_spares_what_runs")
"""Checks that score, which a server of adapters cannot."""


def request(name: str, policy: str = "policy", tokens: int = 400) -> GenerateRequest:
    return GenerateRequest(name, policy, (PROMPT,), Sampling(max_tokens=tokens), 5)


async def scored(engine: Engine, reply: Generation, policy: str) -> Any:
    """The log-probs that an engine gives the tokens of a reply."""
    scores = await engine.score(ScoreRequest("scores", policy, np.concatenate([PROMPT, reply.ids]), len(PROMPT)))
    return scores.logprobs


async def interrupted(engine: VLLMEngine, first: GenerateRequest, version: Version, weights: Any, mode: Any) -> Generation:
    """A request in whose midst weights are published."""
    begun = asyncio.Event()
    task = asyncio.ensure_future(engine.generate(replace(first, on_tokens=lambda ids, logprobs: begun.set())))
    await begun.wait()
    await engine.pause(mode)
    await engine.publish(first.policy, weights, version)
    await engine.resume()
    return await task


async def published_to_in_mid_flight(engine: VLLMEngine, model: Path, mode: Any) -> Generation:
    """A reply of two versions. On a busy machine a request can be over before the server hears of the pause: then another."""
    weights = perturbed(model)
    for attempt in range(8):
        version = Version(mode, "policy", attempt + 1)
        reply = await interrupted(engine, request(f"{mode}.{attempt}"), version, weights(version.step), mode)
        if len(reply.spans) == 2:
            return reply
    raise AssertionError(f"8 requests of 400 tokens were over before the pause ({mode})")


async def test_retract_recomputes_and_in_place_keeps(vllm_url: str, model: Path) -> None:
    worst = dict[str, float]()
    async with VLLMEngine(vllm_url, model=model) as engine:
        for mode in ("in_place", "retract"):
            reply = await published_to_in_mid_flight(engine, model, mode)
            kept, new = reply.spans
            assert new.version == engine.version("policy") and new.kv == ("recomputed" if mode == "retract" else "kept")
            assert 0 < kept.end == new.start < new.end == 400
            scores = await scored(engine, reply, "policy")
            worst[mode] = float(np.abs(scores - reply.logprobs)[new.start :].max())
    assert worst["retract"] < 1e-4 < 1e-2 < worst["in_place"], worst


@pytest.fixture(scope="module")
def lora_url(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    args = ("--max-model-len", str(CONTEXT), "--enable-lora", "--max-loras", "2", "--max-lora-rank", "8")
    command = vllm_command(model, python=python_of("vllm"), args=args)
    command = replace(command, environment={**command.environment, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"})
    with served(command, tmp_path_factory.mktemp("logs")) as url:
        yield url


def adapter(model: Path, folder: Path, n: int) -> Path:
    """A LoRA adapter in peft's layout, and beside it the model with it merged in."""
    noise, whole, low = torch.Generator().manual_seed(n), load_file(model / "model.safetensors"), dict[str, torch.Tensor]()
    for name in [name for name in whole if name.endswith(("q_proj.weight", "v_proj.weight", "down_proj.weight"))]:
        rows, columns = whole[name].shape
        a, b = torch.randn(RANK, columns, generator=noise) * 0.2, torch.randn(rows, RANK, generator=noise) * 0.2
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        low |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
        whole[name] = whole[name] + SCALE * b @ a
    merged = folder / "merged"
    merged.mkdir(parents=True)
    save_file(low, folder / "adapter_model.safetensors")
    save_file(whole, merged / "model.safetensors")
    (merged / "config.json").write_text((model / "config.json").read_text())
    told = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": SCALE * RANK, "bias": "none",
        "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj", "down_proj"], "inference_mode": True,
        "base_model_name_or_path": str(model),
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(told))
    return folder


async def test_adapters_serve_side_by_side_and_requests_keep_theirs(lora_url: str, model: Path, tmp_path: Path) -> None:
    folders = [adapter(model, tmp_path / str(n), n) for n in range(3)]
    versions = [Version("run", "a", n) for n in range(3)]
    merged = {str(n): folder / "merged" for n, folder in enumerate(folders)}
    async with (
        VLLMEngine(lora_url, policy="base", model=model, adapters=("a", "b")) as engine,
        LocalEngine(merged, threads=1) as local,
    ):
        await engine.publish("a", {"path": folders[0]}, versions[0])
        await engine.publish("b", {"path": folders[1]}, Version("run", "b", 0))
        old = await interrupted(engine, request("old", "a"), versions[2], {"path": folders[2]}, "in_place")
        async with asyncio.TaskGroup() as group:
            new, other = [group.create_task(engine.generate(request(name, name, 100))) for name in ("a", "b")]
        told = ((old, versions[0], 0), (new.result(), versions[2], 2), (other.result(), Version("run", "b", 0), 1))
        for reply, version, n in told:
            assert [(span.version, span.start, span.end) for span in reply.spans] == [(version, 0, len(reply.ids))]
            assert np.abs(await scored(local, reply, str(n)) - reply.logprobs).max() < 1e-4


async def test_a_server_of_adapters_holds_the_contract_but_for_scores(lora_url: str, model: Path, tmp_path: Path) -> None:
    held = await check_engine(
        lambda: VLLMEngine(lora_url, policy="base", model=model, adapters=("policy", "other")),
        weights=lambda n: {"path": adapter(model, tmp_path / str(n), n)},
        others=("other",),
        skip=SCORED,
    )
    assert len(held) == 37
