"""The fake is held to traffic recorded from vLLM 0.32.0: same status, same keys, same types."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from agentrl.engines.sglang.fake import ToyModel, random_weights
from agentrl.engines.sglang.fake.toy import log_softmax
from agentrl.engines.vllm.fake import FakeVLLM
from agentrl.engines.vllm.fake.server import write_model
from agentrl.engines.vllm.wire import GENERATE

RECORDED = json.loads((Path(__file__).parent / "vllm_recorded.json").read_text())
IDS = [71, 68, 75, 75, 78]


@pytest.fixture
async def fake() -> AsyncGenerator[FakeVLLM, None]:
    async with FakeVLLM() as server:
        yield server


@pytest.fixture
async def http(fake: FakeVLLM) -> AsyncGenerator[aiohttp.ClientSession, None]:
    async with aiohttp.ClientSession(fake.url) as session:
        yield session


async def send(http: aiohttp.ClientSession, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    async with http.request(method, path, json=body) as response:
        text = await response.text()
        if response.headers["Content-Type"].startswith("text/event-stream"):
            events = [event.removeprefix("data: ") for event in text.strip().split("\n\n")]
            return response.status, [event if event == "[DONE]" else json.loads(event) for event in events]
        return response.status, json.loads(text) if text.startswith(("{", "[")) else text


async def generate(http: aiohttp.ClientSession, ids: list[int] = IDS, **params: Any) -> Any:
    body = {"token_ids": ids, "sampling_params": {"logprobs": 0, "ignore_eos": True, **params}, "return_token_ids": True}
    status, reply = await send(http, "POST", GENERATE, body)
    assert status == 200, reply
    return reply


def shape(value: Any) -> Any:
    """Types, with the keys of objects but for token ids; a list by its first element that is not null."""
    if isinstance(value, dict):
        if all(name.isdigit() for name in value):
            return {"ID": shape(next(iter(value.values())))}
        return {name: shape(inner) for name, inner in value.items() if name != "prompt_tokens_details"}
    if isinstance(value, list):
        return [shape(next((one for one in value if one is not None), None))] if value else []
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded["name"])
async def test_fake_answers_as_recorded(recorded: dict[str, Any], tmp_path: Path) -> None:
    off = recorded["name"] == "scale-out is off"
    async with FakeVLLM(scale_out=not off, eos=2) as fake, aiohttp.ClientSession(fake.url) as http:
        body = json.loads(json.dumps(recorded.get("request")).replace('"MODEL"', json.dumps(str(fake.folder))))
        if body and body.get("model") == "policy":
            body["model"] = "toy"
        if recorded["name"] == "weight info after":
            await send(http, "POST", "/update_weight_version", {"new_version": "run/policy@1#00"})
        status, answered = await send(http, recorded["method"], recorded["path"], body)
    expected = recorded["response"]
    assert status == recorded["status"]
    assert shape(answered) == shape(expected)
    if status in (400, 403) and recorded["name"] not in ("empty",):
        assert answered == expected
    if recorded["path"] == GENERATE and status == 200 and recorded["name"] != "stream":
        for name in ("finish_reason", "weight_versions"):
            assert answered["choices"][0][name] == expected["choices"][0][name]
        assert answered["usage"]["completion_tokens"] == expected["usage"]["completion_tokens"]
    if recorded["name"] == "stream":
        assert [shape(event) for event in answered] == [shape(event) for event in expected]


async def test_logprobs_are_of_what_was_drawn_from(fake: FakeVLLM, http: aiohttp.ClientSession) -> None:
    row = log_softmax(fake.model.logits(IDS))
    best = np.argsort(-row)[:3]
    for seed in range(4):
        (choice,) = (await generate(http, temperature=0.5, top_k=3, max_tokens=1, seed=seed))["choices"]
        token, told = choice["token_ids"][0], choice["logprobs"]["content"][0]["logprob"]
        tempered = row / 0.5
        assert token in best and told == pytest.approx(tempered[token] - np.logaddexp.reduce(tempered[best]))
    (choice,) = (await generate(http, temperature=0, max_tokens=1))["choices"]
    assert choice["logprobs"]["content"][0]["logprob"] == pytest.approx(row.max())


async def test_a_seed_gives_the_same_tokens(http: aiohttp.ClientSession) -> None:
    drawn = [(await generate(http, max_tokens=8, seed=seed))["choices"][0]["token_ids"] for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]


async def test_a_reload_that_fails_kills_the_engine_at_the_next_request(fake: FakeVLLM, http: aiohttp.ClientSession) -> None:
    status, _ = await send(http, "POST", "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": "/none"}})
    assert status == 500
    assert (await send(http, "GET", "/weight_info"))[0] == 200
    status, told = await send(http, "POST", GENERATE, {"token_ids": IDS, "sampling_params": {}})
    assert status == 500 and told["error"]["message"].startswith("EngineCore encountered an issue")


async def test_a_reload_changes_the_weights(fake: FakeVLLM, http: aiohttp.ClientSession, tmp_path: Path) -> None:
    write_model(ToyModel(random_weights(5)), tmp_path)
    body = {"method": "reload_weights", "kwargs": {"weights_path": str(tmp_path)}}
    assert await send(http, "POST", "/collective_rpc", body) == (200, {"results": [None]})
    rows = (await generate(http, max_tokens=1, prompt_logprobs=0))["prompt_logprobs"]
    told = [row[str(token)]["logprob"] for token, row in zip(IDS[1:], rows[1:], strict=True)]
    assert told == pytest.approx(ToyModel(random_weights(5)).score(IDS, 1))


async def test_abort_takes_the_exact_name_only(fake: FakeVLLM, http: aiohttp.ClientSession) -> None:
    body = {"request_id": "g", "token_ids": IDS, "sampling_params": {"max_tokens": 900, "logprobs": 0, "ignore_eos": True}}
    task = asyncio.ensure_future(send(http, "POST", GENERATE, body))
    while not fake.schedulers["toy"].sampling:
        await asyncio.wait([task], timeout=0.01)
    for name in ("g", "generate-tokens-", "generate-tokens-other"):
        await send(http, "POST", "/abort_requests", {"request_ids": [name]})
    assert fake.schedulers["toy"].sampling and not task.done()
    await send(http, "POST", "/abort_requests", {"request_ids": ["generate-tokens-g"]})
    _, reply = await task
    assert reply["choices"][0]["finish_reason"] == "abort" and len(reply["choices"][0]["token_ids"]) < 900
