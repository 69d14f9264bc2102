"""`VLLMEngine` over HTTP: the contract, what is sent, what is refused, and what happens when the server fails."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from agentrl.engines.contract import GenerateRequest, Generation, ScoreRequest
from agentrl.engines.serving import Seconds
from agentrl.engines.sglang.fake import ToyModel, random_weights
from agentrl.engines.vllm import VLLMEngine
from agentrl.engines.vllm.fake import FakeVLLM
from agentrl.engines.vllm.fake.server import write_model
from agentrl.engines.vllm.wire import GENERATE
from agentrl.episode import EMPTY_IDS, IntArray, Sampling, Version, digest_ids, token_ids
from agentrl.errors import ContextOverflow, EngineError, UserError
from agentrl.testing import check_engine

PROMPT = token_ids([71, 68, 75, 75, 78])
LONG = Sampling(max_tokens=900)


@pytest.fixture
async def fake() -> AsyncGenerator[FakeVLLM, None]:
    async with FakeVLLM() as server:
        yield server


@pytest.fixture
async def engine(fake: FakeVLLM) -> AsyncGenerator[VLLMEngine, None]:
    async with VLLMEngine(fake.url, seconds=Seconds(request=30.0, control=10.0)) as client:
        yield client


def request(sampling: Sampling | None = None, *, forced: IntArray = EMPTY_IDS, **more: Any) -> GenerateRequest:
    settings: dict[str, Any] = {"id": "r", "policy": "policy", "parts": (PROMPT,), "seed": 3, **more}
    return GenerateRequest(sampling=sampling or Sampling(max_tokens=4), forced=forced, **settings)


def version(n: int, policy: str = "policy") -> Version:
    return Version("run", policy, n, f"{n:08x}")


async def underway(fake: FakeVLLM, engine: VLLMEngine, **more: Any) -> asyncio.Task[Generation]:
    """A long request that the fake samples now."""
    task = asyncio.ensure_future(engine.generate(request(LONG, **more)))
    while not any(scheduler.sampling for scheduler in fake.schedulers.values()):
        await asyncio.wait([task], timeout=0.01)
    return task


def last_body(fake: FakeVLLM) -> dict[str, Any]:
    return next(body for path, body in reversed(fake.requests) if path == GENERATE)


@asynccontextmanager
async def over_fake() -> AsyncGenerator[VLLMEngine, None]:
    async with FakeVLLM() as fake, VLLMEngine(fake.url) as engine:
        yield engine


@pytest.mark.timeout(120)
async def test_the_client_holds_the_contract_over_http() -> None:
    held = await check_engine(over_fake, weights=random_weights)
    assert "publish_in_flight_gives_two_spans" in held and "logprobs_say_where_the_mask_is" in held


async def test_ids_and_sampling_are_sent_as_the_route_has_them(fake: FakeVLLM, engine: VLLMEngine) -> None:
    await engine.generate(request(Sampling(0.7, top_k=5, top_p=0.9, max_tokens=6, stop_ids=(9,), stop=("x",))))
    body = last_body(fake)
    assert body["token_ids"] == PROMPT.tolist() and body["return_token_ids"] and body["model"] == "toy"
    assert body["sampling_params"] == {
        "temperature": 0.7, "top_k": 5, "top_p": 0.9, "max_tokens": 6, "logprobs": 0, "ignore_eos": True, "seed": 3,
        "stop_token_ids": [9], "stop": ["x"], "detokenize": True,
    }  # fmt: skip


async def test_on_a_cpu_a_tied_model_is_refused_and_no_seed_is_sent_where_prompts_are_cut() -> None:
    for chunked in (True, False):
        async with FakeVLLM(device="cpu", chunked=chunked) as fake:
            config = fake.folder / "config.json"
            told = json.loads(config.read_text())
            config.write_text(json.dumps(told | {"tie_word_embeddings": True}))
            with pytest.raises(UserError, match=r"keep the old one when weights change; serve a copy: python -m agentrl"):
                await VLLMEngine(fake.url).__aenter__()
            config.write_text(json.dumps(told | {"tie_word_embeddings": False}))
            async with VLLMEngine(fake.url) as engine:
                await engine.generate(request())
            assert ("seed" in last_body(fake)["sampling_params"]) is not chunked


async def test_logprobs_at_says_where_the_mask_is(engine: VLLMEngine) -> None:
    told = {
        "none": Sampling(0.7, max_tokens=2),
        "top_k": Sampling(top_k=3, max_tokens=2),
        "top_p": Sampling(top_p=0.5, max_tokens=2),
        "greedy": Sampling(0.0, top_p=0.5, max_tokens=2),
        "top_k=1": Sampling(0.5, top_k=1, max_tokens=2),
    }
    at = {name: (await engine.generate(request(sampling))).logprobs_at for name, sampling in told.items()}
    after, before = "after_mask", "before_mask"
    assert at == {"none": before, "top_k": after, "top_p": after, "greedy": before, "top_k=1": before}


async def test_random_numbers_behind_a_forced_prefix_are_others(fake: FakeVLLM, engine: VLLMEngine) -> None:
    seeds = []
    for length in (0, 1, 2):
        await engine.generate(request(forced=token_ids([5] * length)))
        seeds.append(last_body(fake)["sampling_params"]["seed"])
    assert seeds[0] == 3 and len(set(seeds)) == 3


async def test_a_reply_that_is_all_forced_draws_nothing(engine: VLLMEngine) -> None:
    forced = token_ids([4, 5, 6, 7])
    reply = await engine.generate(request(forced=forced))
    assert np.array_equal(reply.ids, forced) and reply.finish == "length" and len(reply.logprobs) == 4
    assert [(span.start, span.end) for span in reply.spans] == [(0, 4)]
    assert reply.digest == digest_ids(PROMPT, forced)


async def test_a_stream_gives_the_pieces_of_the_reply(engine: VLLMEngine) -> None:
    pieces: list[tuple[Any, Any]] = []
    reply = await engine.generate(request(Sampling(max_tokens=12), on_tokens=lambda *piece: pieces.append(piece)))
    assert len(pieces) == 12
    assert np.array_equal(np.concatenate([ids for ids, _ in pieces]), reply.ids)
    assert np.array_equal(np.concatenate([logprobs for _, logprobs in pieces]), reply.logprobs)
    whole = await engine.generate(request(Sampling(max_tokens=12)))
    assert np.array_equal(whole.ids, reply.ids) and whole.digest == reply.digest and whole.spans == reply.spans
    pieces.clear()
    forced = await engine.generate(request(forced=token_ids([5]), on_tokens=lambda *piece: pieces.append(piece)))
    assert len(pieces) == 4 and np.array_equal(pieces[0][0], [5])
    assert np.array_equal(np.concatenate([logprobs for _, logprobs in pieces]), forced.logprobs)
    assert forced.logprobs == pytest.approx((await engine.generate(request(forced=token_ids([5])))).logprobs)


async def test_a_stream_can_be_aborted(fake: FakeVLLM, engine: VLLMEngine) -> None:
    pieces: list[IntArray] = []
    task = await underway(fake, engine, on_tokens=lambda ids, logprobs: pieces.append(ids))
    await engine.abort("r")
    reply = await task
    assert reply.finish == "abort" and sum(map(len, pieces)) == len(reply.ids) < 900


async def test_prefixes_are_shared_until_weights_change(fake: FakeVLLM, engine: VLLMEngine) -> None:
    salts = []
    for n in (None, None, 1, 1):
        if n is not None:
            await engine.publish("policy", random_weights(1), version(n))
        await engine.generate(request())
        salts.append(last_body(fake)["cache_salt"])
    assert salts[0] == salts[1] and len(set(salts)) == 3


async def test_retract_has_the_cache_recomputed_and_says_so(fake: FakeVLLM, engine: VLLMEngine) -> None:
    for n, mode in ((1, "in_place"), (2, "retract")):
        task = await underway(fake, engine)
        await engine.pause(mode)
        await engine.publish("policy", random_weights(n), version(n))
        await engine.resume()
        spans = (await task).spans
        assert [span.kv for span in spans] == ["kept", "recomputed" if mode == "retract" else "kept"]
    assert ("/reset_prefix_cache", None) in fake.requests


async def test_a_folder_is_published_as_it_is(fake: FakeVLLM, engine: VLLMEngine, tmp_path: Path) -> None:
    write_model(ToyModel(random_weights(8)), tmp_path)
    await engine.publish("policy", {"path": tmp_path}, version(1))
    scores = await engine.score(ScoreRequest("s", "policy", PROMPT))
    assert scores.logprobs == pytest.approx(ToyModel(random_weights(8)).score(PROMPT.tolist(), 1), abs=1e-5)
    assert scores.version == engine.version("policy") == version(1)


async def test_tensors_go_through_the_exchange_folder_and_leave_nothing_there(fake: FakeVLLM, tmp_path: Path) -> None:
    async with VLLMEngine(fake.url, exchange=tmp_path) as engine:
        tensors = {name: torch.from_numpy(value).to(torch.bfloat16) for name, value in random_weights(2).items()}
        await engine.publish("policy", {name: value.float() for name, value in tensors.items()}, version(1))
    path = next(body["kwargs"]["weights_path"] for path, body in fake.requests if path == "/collective_rpc")
    assert Path(path).parent == tmp_path and not os.listdir(tmp_path)


def off(**changes: Any) -> dict[str, Any]:
    weights: dict[str, Any] = {**random_weights(1), **changes}
    return {name: value for name, value in weights.items() if value is not None}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (off(head=None), "head is missing"),
        (off(extra=np.zeros((2, 2), np.float32)), "extra is unknown to it"),
        (off(head=np.zeros((320, 8), np.float32)), r"head has shape \(320, 8\), not \(320, 16\)"),
        (off(head=np.zeros((320, 16), np.int32)), "int32; weights are floats"),
        (off(head="zeros"), "is a str; pass tensors by name"),
        ({}, "no weights to publish"),
        ({"path": "/no/such/folder"}, r"holds no \*\.safetensors that could be seen from here"),
    ],
)
async def test_weights_that_would_kill_the_server_are_not_sent(
    weights: Any, message: str, fake: FakeVLLM, engine: VLLMEngine
) -> None:
    with pytest.raises(UserError, match=message):
        await engine.publish("policy", weights, version(1))
    assert "/collective_rpc" not in [path for path, _ in fake.requests]
    assert (await engine.generate(request())).finish == "length"


async def test_files_that_would_kill_the_server_are_not_sent(engine: VLLMEngine, fake: FakeVLLM, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(random_weights(1), file)
    whole = file.read_bytes()
    for data, message in (
        (whole[:-7], "cut short"),
        (b"GGUF" + whole, "no safetensors file"),
        (whole[:5], "no safetensors file"),
    ):
        file.write_bytes(data)
        with pytest.raises(UserError, match=message):
            await engine.publish("policy", {"path": tmp_path}, version(1))
    assert not fake.doomed


async def test_after_a_reload_that_failed_requests_are_refused(fake: FakeVLLM, engine: VLLMEngine) -> None:
    fake.fail("/collective_rpc", "500")
    with pytest.raises(EngineError, match="answered 500"):
        await engine.publish("policy", random_weights(1), version(1))
    with pytest.raises(EngineError, match="did not come to the end of loading"):
        await engine.generate(request())
    await engine.publish("policy", random_weights(1), version(1))
    assert (await engine.generate(request())).spans[0].version == version(1)


async def test_publishing_over_another_run_is_noticed(fake: FakeVLLM, engine: VLLMEngine) -> None:
    fake.fail("/update_weight_version", "garbage")
    with pytest.raises(EngineError, match="no JSON"):
        await engine.publish("policy", random_weights(1), version(1))


async def test_scores_that_new_weights_overtook_are_asked_for_again() -> None:
    async with FakeVLLM(token_s=0.2) as fake, VLLMEngine(fake.url) as engine:
        task = asyncio.ensure_future(engine.score(ScoreRequest("s", "policy", PROMPT)))
        while not fake.schedulers["toy"].sampling:
            await asyncio.wait([task], timeout=0.01)
        await engine.publish("policy", random_weights(4), version(4))
        scores = await task
    assert scores.version == version(4)
    assert scores.logprobs == pytest.approx(ToyModel(random_weights(4)).score(PROMPT.tolist(), 1), abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "message"),
    [("drop", "failed: "), ("garbage", "no JSON"), ("500", "answered 500"), ("cut", "failed: "), ("never", "no answer within")],
)
async def test_a_failing_server_is_named_and_the_next_request_is_served(kind: Any, message: str, fake: FakeVLLM) -> None:
    async with VLLMEngine(fake.url, seconds=Seconds(request=0.5, control=5.0)) as engine:
        fake.fail(GENERATE, kind)
        with pytest.raises(EngineError, match=f"vLLM at http://127.0.0.1:[0-9]+.*{message}") as caught:
            await engine.generate(request())
        assert caught.value.retryable == (kind != "garbage")
        assert (await engine.generate(request())).finish == "length"


async def test_a_slow_drip_ends_at_the_deadline_and_frees_its_place(fake: FakeVLLM) -> None:
    async with VLLMEngine(fake.url, seconds=Seconds(request=0.3, control=5.0)) as engine:
        fake.fail(GENERATE, "drip")
        with pytest.raises(EngineError, match=r"no answer within 0\.3 s"):
            await engine.generate(request())
        aborted = [body["request_ids"][0] for path, body in fake.requests if path == "/abort_requests"]
        assert aborted == [f"generate-tokens-{last_body(fake)['request_id']}"]


@pytest.mark.parametrize("kind", ["drop", "garbage", "500", "cut"])
async def test_a_stream_that_breaks_off_is_an_error(kind: Any, fake: FakeVLLM, engine: VLLMEngine) -> None:
    fake.fail(GENERATE, kind)
    with pytest.raises(EngineError):
        await engine.generate(request(on_tokens=lambda ids, logprobs: None))


async def test_a_killed_server_is_named(fake: FakeVLLM, engine: VLLMEngine) -> None:
    task = await underway(fake, engine)
    await fake.kill()
    with pytest.raises(EngineError, match=r"check that the server runs.*reload of weights that failed kills"):
        await task
    with pytest.raises(EngineError, match="check that the server runs"):
        await engine.healthy()


async def test_a_deadline_stands_still_while_paused(fake: FakeVLLM) -> None:
    async with VLLMEngine(fake.url, seconds=Seconds(request=1.0)) as engine:
        task = await underway(fake, engine)
        await engine.pause()
        done, _ = await asyncio.wait([task], timeout=1.3)
        await engine.resume()
        assert not done and (await task).finish in ("length", "stop")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"version": "0.6.0"}, "has version 0.6.0; known are 0.32.0"),
        ({"logprobs_mode": "raw_logprobs"}, "gives log-probs by --logprobs-mode raw_logprobs.*start it with"),
        ({"scale_out": False}, "takes no token ids; start it with .*--enable-scale-out"),
        ({"dev_mode": False}, "has no routes for weights; start it with VLLM_SERVER_DEV_MODE=1"),
    ],
)
async def test_a_server_that_will_not_do_is_refused_at_once(settings: Any, message: str) -> None:
    async with FakeVLLM(**settings) as fake:
        with pytest.raises(UserError, match=message):
            async with VLLMEngine(fake.url):
                pass


async def test_a_model_folder_that_is_not_visible_and_a_wrong_url_are_told(fake: FakeVLLM) -> None:
    with pytest.raises(UserError, match="is not visible from here; pass model=FOLDER"):
        async with VLLMEngine(fake.url, model="/no/such/model"):
            pass
    with pytest.raises(UserError, match="must begin with http"):
        VLLMEngine("localhost:8000")
    with pytest.raises(UserError, match="serves 'policy', not policy 'other'"):
        async with VLLMEngine(fake.url) as engine:
            await engine.generate(request(policy="other"))


async def test_what_does_not_fit_is_refused_before_it_is_sent(fake: FakeVLLM, engine: VLLMEngine) -> None:
    before = len(fake.requests)
    with pytest.raises(ContextOverflow):
        await engine.generate(request(parts=(token_ids([1] * 1024),)))
    for bad in (request(parts=(token_ids([320]),)), request(parts=(EMPTY_IDS,)), request(Sampling(stop_ids=(320,)))):
        with pytest.raises(UserError):
            await engine.generate(bad)
    assert len(fake.requests) == before


def write_adapter(folder: Path, seed: int, rank: int = 2) -> Path:
    folder.mkdir()
    delta = np.random.default_rng(seed).normal(size=(320, 16)).astype(np.float32)
    save_file({"head": delta}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank, "peft_type": "LORA"}))
    return folder


def adapted(fake: FakeVLLM, folder: Path, ids: list[int], start: int) -> list[float]:
    from safetensors.numpy import load_file

    head = fake.model.tensors["head"] + load_file(folder / "adapter_model.safetensors")["head"]
    return ToyModel({"embed": fake.model.tensors["embed"], "head": head}).score(ids, start)


async def test_adapters_are_policies_of_their_own(tmp_path: Path) -> None:
    folders = [write_adapter(tmp_path / f"a{n}", n) for n in range(3)]
    async with FakeVLLM(max_rank=4) as fake, VLLMEngine(fake.url, adapters=("a", "b")) as engine:
        assert engine.info.offers.adapters and not engine.info.offers.swap_in_flight
        base = await engine.generate(request(policy="a"))
        assert base.spans[0].version == Version("server", "a", 0, "default"), "before its first publish it is the base"
        assert np.array_equal(base.ids, (await engine.generate(request())).ids)
        await engine.publish("a", {"path": folders[0]}, version(0, "a"))
        await engine.publish("b", {"path": folders[1]}, version(0, "b"))
        task = await underway(fake, engine, policy="a")
        await engine.publish("a", {"path": folders[2]}, version(1, "a"))
        new, old = await engine.generate(request(policy="a", id="new")), await task
        other, base = await engine.generate(request(policy="b")), await engine.generate(request())
        for reply, expected, folder in ((old, version(0, "a"), 0), (new, version(1, "a"), 2), (other, version(0, "b"), 1)):
            assert [(span.version, span.start, span.end) for span in reply.spans] == [(expected, 0, len(reply.ids))]
            ids = [*PROMPT.tolist(), *reply.ids.tolist()]
            assert reply.logprobs == pytest.approx(adapted(fake, folders[folder], ids, len(PROMPT)), abs=1e-4)
        assert base.spans[0].version == engine.version("policy") != engine.version("a")
        forced = await engine.generate(request(policy="b", forced=token_ids([5])))
        assert np.isnan(forced.logprobs[0]) and np.isfinite(forced.logprobs[1:]).all()
        assert not engine.info.offers.scoring
        with pytest.raises(UserError, match="takes adapters, and cannot score"):
            await engine.score(ScoreRequest("s", "a", PROMPT))
        assert not fake.doomed


async def test_adapters_that_will_not_do_are_refused(tmp_path: Path) -> None:
    async with FakeVLLM() as plain:
        with pytest.raises(UserError, match="takes no adapters; start it with --enable-lora"):
            async with VLLMEngine(plain.url, adapters=("a",)):
                pass
    async with FakeVLLM(max_rank=4) as fake, VLLMEngine(fake.url, adapters=("a",)) as engine:
        with pytest.raises(UserError, match=r"has rank 8; .* takes up to 4"):
            await engine.publish("a", {"path": write_adapter(tmp_path / "wide", 0, rank=8)}, version(0, "a"))
        with pytest.raises(UserError, match=r"has no adapter_config\.json"):
            await engine.publish("a", {"path": tmp_path}, version(0, "a"))
        with pytest.raises(UserError, match="is an adapter; publish"):
            await engine.publish("a", random_weights(1), version(0, "a"))
        with pytest.raises(UserError, match="'policy' is the frozen base of a"):
            await engine.publish("policy", random_weights(1), version(1))
