"""The fake is held to traffic recorded from SGLang 0.5.23: same status, same keys, same types."""

from __future__ import annotations

import asyncio
import base64
import json
import pickle
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agentrl.engines.folders import tensors_of
from agentrl.engines.sglang.fake import FakeSGLang, ToyModel, random_weights, save_adapter
from agentrl.engines.sglang.weights import buckets, serialize

RECORDED = json.loads((Path(__file__).parent / "sglang_recorded.json").read_text())
IDS = [71, 68, 75, 75, 78]
LEFT_OUT = {
    "/model_info": {
        "reasoning_parser",
        "tool_call_parser",
        "disaggregation_mode",
        "has_image_understanding",
        "has_audio_understanding",
    }
}
"""Keys of the real reply that no client here reads."""


@pytest.fixture
async def fake() -> AsyncGenerator[FakeSGLang, None]:
    async with FakeSGLang(paused_health_s=0.05) as server:
        yield server


@pytest.fixture
async def http(fake: FakeSGLang) -> AsyncGenerator[aiohttp.ClientSession, None]:
    async with aiohttp.ClientSession(fake.url) as session:
        yield session


async def post(http: aiohttp.ClientSession, path: str, body: Any) -> tuple[int, Any]:
    async with http.post(path, json=body) as response:
        text = await response.text()
        return response.status, json.loads(text) if text.startswith(("{", "[", "null")) else text


def shape(value: Any) -> Any:
    """Types, with the keys of objects; a list by the shape of its first element; null stays apart."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def without_cache(value: Any) -> Any:
    """`cached_tokens_details` is null or an object by what ran before, and so differs from record to record."""
    if isinstance(value, list):
        return [without_cache(one) for one in value]
    if isinstance(value, dict):
        return {name: without_cache(one) for name, one in value.items() if name != "cached_tokens_details"}
    return value


async def prepare(http: aiohttp.ClientSession, name: str) -> None:
    """What had happened before the exchange of this name."""
    if name in ("begin twice?",):
        await post(http, "/begin_weight_update", {})
    if name == "/continue_generation {}":
        await post(http, "/pause_generation", {})
    if name == "resume memory":
        await post(http, "/release_memory_occupation", {})


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded["name"])
async def test_fake_answers_as_recorded(recorded: dict[str, Any], http: aiohttp.ClientSession) -> None:
    await prepare(http, recorded["name"])
    async with http.request(recorded["method"], recorded["path"], json=recorded.get("request")) as response:
        text = await response.text()
    assert response.status == recorded["status"]
    if recorded["response"] in (None, "null"):
        assert text == (recorded["response"] or "")
        return
    answered, expected = json.loads(text), recorded["response"]
    for name in LEFT_OUT.get(recorded["path"], ()):
        expected.pop(name)
    assert shape(without_cache(answered)) == shape(without_cache(expected))
    if recorded["path"] == "/generate" and response.status == 200:
        for mine, theirs in zip(*[one if isinstance(one, list) else [one] for one in (answered, expected)], strict=True):
            mine, theirs = mine["meta_info"], theirs["meta_info"]
            for name in ("finish_reason", "prompt_tokens", "completion_tokens", "weight_version", "weight_versions"):
                assert mine[name] == theirs[name]
    if response.status == 400 and recorded["name"] not in ("T=0.5, top_p 0.5", "update_weights_from_disk bad path"):
        assert answered == expected


async def test_length_refusals_are_those_recorded(http: aiohttp.ClientSession) -> None:
    status, told = await post(http, "/generate", {"input_ids": [65] * 3000, "sampling_params": {"max_new_tokens": 4}})
    assert (status, told) == (
        400,
        {"error": {"message": "The input (3000 tokens) is longer than the model's context length (2048 tokens)."}},
    )
    status, told = await post(http, "/generate", {"input_ids": [65] * 2000, "sampling_params": {"max_new_tokens": 100}})
    assert told["error"]["message"].startswith(
        "Requested token count exceeds the model's maximum context length of 2048 tokens. You requested a total of 2100 tokens"
    )
    status, told = await post(http, "/generate", {"input_ids": [65] * 2045, "sampling_params": {"max_new_tokens": 1}})
    assert told["error"]["message"].startswith("Input length (2045 tokens) exceeds the maximum allowed length (2042 tokens).")
    status, told = await post(
        http, "/generate", {"input_ids": [5] * 2040, "sampling_params": {"max_new_tokens": 8, "ignore_eos": True}}
    )
    assert status == 200 and told["meta_info"]["finish_reason"] == {"type": "length", "length": 6}


async def test_stream_is_cumulative_and_ends_with_done(http: aiohttp.ClientSession) -> None:
    body = {
        "input_ids": IDS,
        "sampling_params": {"max_new_tokens": 3, "ignore_eos": True},
        "return_logprob": True,
        "stream": True,
    }
    async with http.post("/generate", json=body) as response:
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        events = (await response.text()).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert [len(chunk["output_ids"]) for chunk in chunks] == [1, 2, 3]
    assert [chunk["meta_info"]["finish_reason"] for chunk in chunks] == [None, None, {"type": "length", "length": 3}]
    assert ["weight_versions" in chunk["meta_info"] for chunk in chunks] == [False, False, True]


async def long(
    http: aiohttp.ClientSession, rid: str, tokens: int = 1500, more: dict[str, Any] | None = None
) -> asyncio.Task[tuple[int, Any]]:
    """A request under way: it returns once the fake samples it."""
    body = {
        "rid": rid,
        "input_ids": IDS,
        "sampling_params": {"max_new_tokens": tokens, "ignore_eos": True},
        "return_logprob": True,
        **(more or {}),
    }
    task = asyncio.ensure_future(post(http, "/generate", body))
    while True:
        async with http.get("/v1/loads") as response:
            if (await response.json())["loads"][0]["num_running_reqs"]:
                return task


async def test_abort_takes_the_exact_rid_only_and_gives_the_partial_output(http: aiohttp.ClientSession) -> None:
    task = await long(http, "one-two")
    assert await post(http, "/abort_request", {"rid": "one"}) == (200, "")
    assert not task.done()
    assert await post(http, "/abort_request", {"rid": "one-two"}) == (200, "")
    status, reply = await task
    assert status == 200 and 0 < len(reply["output_ids"]) < 1500
    assert reply["meta_info"]["finish_reason"] == {"type": "abort", "message": "Aborted", "status_code": None, "err_type": None}
    assert len(reply["meta_info"]["output_token_logprobs"]) == len(reply["output_ids"])


async def test_abort_all_and_live_duplicate_rids(http: aiohttp.ClientSession) -> None:
    task = await long(http, "dup-1")
    body = {"rid": "dup-1", "input_ids": IDS, "sampling_params": {"max_new_tokens": 4}}
    assert await post(http, "/generate", body) == (400, {"error": {"message": "Duplicate request ID detected: dup-1"}})
    await post(http, "/abort_request", {"rid": "", "abort_all": True})
    assert (await task)[1]["meta_info"]["finish_reason"]["type"] == "abort"


async def test_pause_abort_ends_what_runs_and_holds_what_comes(http: aiohttp.ClientSession) -> None:
    task = await long(http, "pa-1")
    await post(http, "/pause_generation", {})
    assert (await task)[1]["meta_info"]["finish_reason"]["type"] == "abort"
    held = asyncio.ensure_future(
        post(http, "/generate", {"input_ids": IDS, "sampling_params": {"max_new_tokens": 2, "ignore_eos": True}})
    )
    async with http.get("/health") as health, http.get("/model_info") as info:
        assert (health.status, info.status) == (503, 200)
    assert not held.done()
    await post(http, "/continue_generation", {})
    assert (await held)[1]["meta_info"]["finish_reason"] == {"type": "length", "length": 2}


async def test_flush_cache_is_refused_while_requests_hold_kv(http: aiohttp.ClientSession) -> None:
    task = await long(http, "fl-1")
    assert await post(http, "/flush_cache", None) == (400, "Flush cache failed.\n")
    assert await post(http, "/flush_cache?timeout=0.01", None) == (400, "Timed out waiting for idle state.")
    await post(http, "/pause_generation", {"mode": "in_place"})
    assert (await post(http, "/flush_cache", None))[0] == 400
    await post(http, "/continue_generation", {})
    await post(http, "/pause_generation", {"mode": "retract"})
    assert (await post(http, "/flush_cache", None))[0] == 200
    await post(http, "/continue_generation", {})
    reply = (await task)[1]
    assert reply["meta_info"]["num_retractions"] == 1 and len(reply["output_ids"]) == 1500


async def test_cached_tokens_as_recorded(http: aiohttp.ClientSession) -> None:
    body = {"input_ids": IDS, "sampling_params": {"max_new_tokens": 1, "ignore_eos": True}}
    scored = {"return_logprob": True, "logprob_start_len": 3}
    replies = [await post(http, "/generate", body | more) for more in ({}, {}, scored, {"extra_key": "k"})]
    cold, warm, cut, other = [reply["meta_info"] for _, reply in replies]
    assert (cold["cached_tokens"], cold["cached_tokens_details"]) == (0, None)
    assert (warm["cached_tokens"], warm["cached_tokens_details"]) == (4, {"device": 4, "host": 0})
    assert cut["cached_tokens"] == 3 and other["cached_tokens"] == 0


async def test_last_id_of_the_vocabulary_is_called_0_among_input_logprobs(http: aiohttp.ClientSession) -> None:
    body = {
        "input_ids": [5, 6, 319, 7],
        "sampling_params": {"max_new_tokens": 0},
        "return_logprob": True,
        "logprob_start_len": 1,
    }
    meta = (await post(http, "/generate", body))[1]["meta_info"]
    assert [entry[1] for entry in meta["input_token_logprobs"]] == [6, 0, 7]


async def test_weights_from_disk_in_mid_request_give_two_spans(http: aiohttp.ClientSession, tmp_path: Path) -> None:
    ToyModel.random(5).save(tmp_path)
    task = await long(http, "wu-1")
    await post(http, "/pause_generation", {"mode": "in_place"})
    body = {"model_path": str(tmp_path), "weight_version": "v1", "flush_cache": False}
    told = await post(http, "/update_weights_from_disk", body)
    message = "Succeeded to update model weights. Weight version updated to v1."
    assert told == (200, {"success": True, "message": message, "num_paused_requests": 0})
    await post(http, "/continue_generation", {})
    spans = (await task)[1]["meta_info"]["weight_versions"]
    assert [span["version"] for span in spans] == ["v0", "v1"]
    assert spans[0]["start"] == 0 and spans[0]["end"] == spans[1]["start"] and spans[1]["end"] == 1500


async def test_update_without_a_pause_waits_for_the_running_request(http: aiohttp.ClientSession, tmp_path: Path) -> None:
    ToyModel.random(5).save(tmp_path)
    task = await long(http, "wu-3", 300)
    await post(http, "/update_weights_from_disk", {"model_path": str(tmp_path), "weight_version": "v3"})
    assert (await task)[1]["meta_info"]["weight_versions"] == [{"version": "v0", "start": 0, "end": 300}]


async def test_tensor_updates_need_a_session(http: aiohttp.ClientSession) -> None:
    payload = serialize(next(buckets(tensors_of(random_weights(1)), 1 << 20)))
    update = {"serialized_named_tensors": [payload], "weight_version": "t1"}
    assert (await post(http, "/update_weights_from_tensor", update))[0] == 400
    assert await post(http, "/begin_weight_update", {"selector": "all"}) == (200, {"success": True, "message": "Success"})
    told = await post(http, "/update_weights_from_tensor", update)
    assert told == (200, {"success": True, "message": "Success Weight version updated to t1."})
    assert await post(http, "/end_weight_update", {}) == (200, {"success": True, "message": "Success"})


class Blocked:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("never",)


async def test_blocked_pickle_kills_the_server(fake: FakeSGLang, http: aiohttp.ClientSession) -> None:
    await post(http, "/begin_weight_update", {})
    payload = base64.b64encode(pickle.dumps(Blocked())).decode()
    with pytest.raises(aiohttp.ClientError):
        await post(http, "/update_weights_from_tensor", {"serialized_named_tensors": [payload]})
    assert fake.dead
    with pytest.raises(aiohttp.ClientError):
        await http.get("/model_info")


async def test_id_outside_the_vocabulary_kills_the_server(fake: FakeSGLang, http: aiohttp.ClientSession) -> None:
    with pytest.raises(aiohttp.ClientError):
        await post(http, "/generate", {"input_ids": [99999], "sampling_params": {"max_new_tokens": 4}})
    assert fake.dead


async def test_flush_of_held_kv_by_an_update_kills_the_server(
    fake: FakeSGLang, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    ToyModel.random(5).save(tmp_path)
    task = await long(http, "wu-9")
    await post(http, "/pause_generation", {"mode": "in_place"})
    with pytest.raises(aiohttp.ClientError):
        await post(http, "/update_weights_from_disk", {"model_path": str(tmp_path), "weight_version": "v1"})
    with pytest.raises(aiohttp.ClientError):
        await task
    assert fake.dead


async def test_abort_of_a_request_that_waits_for_a_resume_is_lost(http: aiohttp.ClientSession) -> None:
    await post(http, "/pause_generation", {"mode": "in_place"})
    body = {"rid": "w", "input_ids": IDS, "sampling_params": {"max_new_tokens": 3, "ignore_eos": True}}
    held = asyncio.ensure_future(post(http, "/generate", body))
    while True:
        async with http.get("/v1/loads") as response:
            if (await response.json())["loads"][0]["num_waiting_reqs"]:
                break
    assert await post(http, "/abort_request", {"rid": "w"}) == (200, "")
    await post(http, "/continue_generation", {})
    assert (await held)[1]["meta_info"]["finish_reason"] == {"type": "length", "length": 3}


async def test_model_path_is_that_of_the_folder_loaded_last(http: aiohttp.ClientSession, tmp_path: Path) -> None:
    ToyModel.random(5).save(tmp_path)
    await post(http, "/update_weights_from_disk", {"model_path": str(tmp_path), "weight_version": "v1"})
    paths = [(await (await http.get(path)).json())["model_path"] for path in ("/model_info", "/server_info")]
    assert paths == [str(tmp_path), "models/toy"]


def tensors(**named: Any) -> dict[str, Any]:
    return {"serialized_named_tensors": [serialize(next(buckets(tensors_of(named), 1 << 20)))], "weight_version": "t1"}


async def test_unknown_names_are_passed_over_and_tensors_not_given_stay(fake: FakeSGLang, http: aiohttp.ClientSession) -> None:
    body = {"input_ids": IDS, "sampling_params": {"max_new_tokens": 0}, "return_logprob": True, "logprob_start_len": 0}
    before = (await post(http, "/generate", body))[1]["meta_info"]["input_token_logprobs"]
    await post(http, "/begin_weight_update", {})
    told = await post(http, "/update_weights_from_tensor", tensors(nope=random_weights(1)["embed"]))
    assert told == (200, {"success": True, "message": "Success Weight version updated to t1."})
    assert (await post(http, "/generate", body))[1]["meta_info"]["input_token_logprobs"] == before


async def test_tensors_of_another_shape_kill_the_server(fake: FakeSGLang, http: aiohttp.ClientSession) -> None:
    await post(http, "/begin_weight_update", {})
    with pytest.raises(aiohttp.ClientError):
        await post(http, "/update_weights_from_tensor", tensors(embed=random_weights(1)["embed"][:7]))
    assert fake.dead


async def test_memory_released_under_a_running_request_kills_the_server(fake: FakeSGLang, http: aiohttp.ClientSession) -> None:
    task = await long(http, "m-1")
    await post(http, "/pause_generation", {"mode": "in_place"})
    with pytest.raises(aiohttp.ClientError):
        await post(http, "/release_memory_occupation", {})
    with pytest.raises(aiohttp.ClientError):
        await task
    assert fake.dead


async def test_memory_taken_back_twice_kills_the_server(fake: FakeSGLang, http: aiohttp.ClientSession) -> None:
    assert await post(http, "/release_memory_occupation", {}) == (200, None)
    assert await post(http, "/resume_memory_occupation", {}) == (200, None)
    with pytest.raises(aiohttp.ClientError):
        await post(http, "/resume_memory_occupation", {})
    assert fake.dead


async def test_refusals_of_a_stream_come_as_events_unless_the_body_is_no_request(http: aiohttp.ClientSession) -> None:
    body = {"input_ids": IDS, "sampling_params": {"top_k": -5}, "stream": True}
    async with http.post("/generate", json=body) as response:
        message = "top_k must be -1 (disable) or at least 1, got -5."
        event = {"error": {"message": message, "type": "invalid_request_error", "code": 400, "retryable": False}}
        assert response.status == 200 and await response.text() == f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n"
    assert (await post(http, "/generate", body | {"sampling_params": {"nope": 1}}))[0] == 400


@pytest.fixture
async def lora() -> AsyncGenerator[aiohttp.ClientSession, None]:
    async with FakeSGLang(lora=True) as server, aiohttp.ClientSession(server.url) as session:
        yield session


def outcome(error: str, loaded: dict[str, str] | None) -> dict[str, Any]:
    return {"rid": None, "http_worker_ipc": None, "success": not error, "error_message": error, "loaded_adapters": loaded}


async def test_adapters_are_loaded_once_and_loaded_anew_when_asked_for(lora: aiohttp.ClientSession, tmp_path: Path) -> None:
    path = str(save_adapter(tmp_path, 1))
    load = {"lora_name": "a@1", "lora_path": path}
    assert await post(lora, "/load_lora_adapter", load) == (200, outcome("", {"a@1": path}))
    again = "Failed to load LoRA adapter a@1 because it is already loaded"
    assert await post(lora, "/load_lora_adapter", load) == (400, outcome(again, {"a@1": path}))
    assert (await (await lora.get("/v1/models")).json())["data"][1]["id"] == "a@1"
    assert await post(lora, "/unload_lora_adapter", {"lora_name": "a@1"}) == (200, outcome("", {}))
    gone = "LoRA with name a@1 does not exist. Loaded LoRAs: odict_keys([])"
    assert await post(lora, "/unload_lora_adapter", {"lora_name": "a@1"}) == (400, outcome(gone, None))
    body = {"input_ids": IDS, "sampling_params": {"max_new_tokens": 2, "ignore_eos": True}, "lora_path": "a@1"}
    status, reply = await post(lora, "/generate", body)
    assert status == 200 and reply["meta_info"]["weight_versions"] == [{"version": "v0", "start": 0, "end": 2}]
    never = "Got LoRA adapter that has never been loaded: b\nAll loaded adapters: dict_keys(['a@1'])."
    assert await post(lora, "/generate", body | {"lora_path": "b"}) == (400, {"error": {"message": never}})


async def test_unload_waits_for_its_requests_and_loads_wait_behind_it(lora: aiohttp.ClientSession, tmp_path: Path) -> None:
    first, second = (str(save_adapter(tmp_path / str(n), n)) for n in range(2))
    await post(lora, "/load_lora_adapter", {"lora_name": "a", "lora_path": first})
    running = await long(lora, "l-1", more={"lora_path": "a"})
    unload = asyncio.ensure_future(post(lora, "/unload_lora_adapter", {"lora_name": "a"}))
    load = asyncio.ensure_future(post(lora, "/load_lora_adapter", {"lora_name": "b", "lora_path": second}))
    done, _ = await asyncio.wait([unload, load], timeout=0.05)
    assert not done and not running.done()
    await post(lora, "/abort_request", {"rid": "l-1"})
    assert [(await task)[0] for task in (running, unload, load)] == [200, 200, 200]
