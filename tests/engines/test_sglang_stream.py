"""Streams and sampling masks over SGLang's wire: pieces make up the reply, a broken stream is an error that says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np
import pytest

from agentrl.engines.contract import GenerateRequest
from agentrl.engines.serving import Seconds
from agentrl.engines.sglang import SGLangEngine
from agentrl.engines.sglang.fake import FakeSGLang, ToyModel
from agentrl.engines.sglang.fake.toy import kept, log_softmax
from agentrl.episode import FloatArray, IntArray, Sampling, token_ids
from agentrl.errors import ContextOverflow, EngineError, UserError

PROMPT = token_ids([71, 68, 75, 75, 78])


@pytest.fixture
async def fake() -> AsyncGenerator[FakeSGLang, None]:
    async with FakeSGLang(deterministic=True) as server:
        yield server


@pytest.fixture
async def engine(fake: FakeSGLang) -> AsyncGenerator[SGLangEngine, None]:
    async with SGLangEngine(fake.url, vocab_size=320, seconds=Seconds(request=5.0, control=0.5)) as client:
        yield client


def ask(name: str = "r", sampling: Sampling | None = None, **more: Any) -> GenerateRequest:
    return GenerateRequest(name, "policy", (PROMPT,), sampling or Sampling(max_tokens=6), more.pop("seed", 7), **more)


class Told:
    def __init__(self) -> None:
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.pieces = 0

    def __call__(self, ids: IntArray, logprobs: FloatArray) -> None:
        self.ids += ids.tolist()
        self.logprobs += logprobs.tolist()
        self.pieces += 1


async def test_stream_gives_the_same_reply_as_no_stream(engine: SGLangEngine) -> None:
    told = Told()
    streamed, whole = await engine.generate(ask(on_tokens=told)), await engine.generate(ask())
    assert told.ids == streamed.ids.tolist() == whole.ids.tolist() and told.logprobs == whole.logprobs.tolist()
    assert told.pieces == 6 and streamed.digest == whole.digest and streamed.spans == whole.spans


async def test_forced_tokens_come_with_the_first_piece(engine: SGLangEngine) -> None:
    told = Told()
    reply = await engine.generate(ask(forced=token_ids([1, 2]), on_tokens=told))
    assert told.ids == reply.ids.tolist() and told.ids[:2] == [1, 2] and told.pieces == 4


async def test_reply_cut_in_mid_stream_goes_on_when_its_tokens_are_forced(engine: SGLangEngine) -> None:
    uncut = await engine.generate(ask(sampling=Sampling(max_tokens=900)))
    told = Told()

    def cut(ids: IntArray, logprobs: FloatArray) -> None:
        told(ids, logprobs)
        if len(told.ids) == 10:
            aborting.append(loop.create_task(engine.abort("cut")))

    loop, aborting = asyncio.get_running_loop(), list[asyncio.Task[None]]()
    reply = await engine.generate(ask("cut", Sampling(max_tokens=900), on_tokens=cut))
    await asyncio.wait(aborting)
    assert reply.finish == "abort" and told.ids == reply.ids.tolist() and 10 <= len(reply.ids) < 900
    on = await engine.generate(ask("on", Sampling(max_tokens=900), forced=reply.ids))
    assert on.ids.tolist() == uncut.ids.tolist()


@pytest.mark.parametrize(
    ("kind", "message", "retryable"),
    [
        ("stream_error", "failed in mid-stream with 503: scheduler is gone", True),
        ("stream_cut", "POST /generate failed.*check that the server runs", True),
        ("stream_end", "the stream broke off before its end", True),
        ("drop", "POST /generate failed.*check that the server runs", True),
        ("garbage", "no JSON.*proxy", False),
        ("500", "answered 500", True),
        ("never", r"had no answer within 0\.3 s", True),
    ],
)
async def test_broken_stream_is_an_error_that_names_it(fake: FakeSGLang, kind: Any, message: str, retryable: bool) -> None:
    async with SGLangEngine(fake.url, vocab_size=320, seconds=Seconds(request=0.3, control=0.5)) as engine:
        fake.fail("/generate", kind)
        with pytest.raises(EngineError, match=message) as caught:
            await engine.generate(ask(on_tokens=Told()))
        assert fake.url in str(caught.value) and caught.value.retryable == retryable
        assert len((await engine.generate(ask(on_tokens=Told()))).ids) == 6


async def test_stream_that_drips_on_ends_at_its_deadline() -> None:
    async with FakeSGLang(token_s=0.05) as fake, SGLangEngine(fake.url, vocab_size=320, seconds=Seconds(request=0.3)) as engine:
        with pytest.raises(EngineError, match=r"had no answer within 0\.3 s"):
            await engine.generate(ask(sampling=Sampling(max_tokens=100), on_tokens=Told()))
        while fake.scheduler.runs:  # noqa: ASYNC110 - the fake runs in this loop and has nothing to wait for
            await asyncio.sleep(0)


async def test_refusal_told_in_a_stream_is_the_same_refusal(fake: FakeSGLang, engine: SGLangEngine) -> None:
    fake.limits = type(fake.limits)(fake.limits.vocab_size, 20, fake.limits.eos)
    with pytest.raises(ContextOverflow, match="400"):
        await engine.generate(ask(sampling=Sampling(max_tokens=100), on_tokens=Told()))


async def test_error_of_the_listener_is_its_own_and_ends_the_request(fake: FakeSGLang, engine: SGLangEngine) -> None:
    def listen(ids: IntArray, logprobs: FloatArray) -> None:
        raise BrokenPipeError("the terminal is gone")

    with pytest.raises(BrokenPipeError, match="the terminal is gone"):
        await engine.generate(ask(sampling=Sampling(max_tokens=1500), on_tokens=listen))
    assert len((await engine.generate(ask())).ids) == 6
    assert not fake.scheduler.runs


async def test_long_events_are_read_whole(engine: SGLangEngine) -> None:
    told = Told()
    sampling = Sampling(top_k=300, max_tokens=60)
    reply = await engine.generate(ask(sampling=sampling, on_tokens=told, columns=("kept",)))
    assert told.ids == reply.ids.tolist() and reply.columns["kept"].values.shape == (60, 300)


async def test_server_that_streams_increments_is_not_asked_to_stream() -> None:
    async with (
        FakeSGLang(server_info={"incremental_streaming_output": True}) as fake,
        SGLangEngine(fake.url, vocab_size=320) as engine,
    ):
        told = Told()
        reply = await engine.generate(ask(on_tokens=told))
        assert not engine.info.offers.streaming and told.pieces == 1 and told.ids == reply.ids.tolist()
        assert "stream" not in dict(fake.requests)["/generate"]


@pytest.mark.parametrize("sampling", [Sampling(top_k=9, max_tokens=3), Sampling(0.5, 9, 0.1, 3), Sampling(0, max_tokens=3)])
async def test_mask_columns_are_those_of_the_model(engine: SGLangEngine, sampling: Sampling) -> None:
    reply = await engine.generate(ask(sampling=sampling, columns=("kept", "mask_logprob")))
    path = PROMPT.tolist()
    for at, token in enumerate(reply.ids.tolist()):
        row = log_softmax(ToyModel.random().logits(path) / (sampling.temperature or 1))
        keep = np.flatnonzero(kept(row, sampling.top_k, sampling.top_p)) if sampling.temperature else np.array([row.argmax()])
        given = reply.columns["kept"].values[at]
        assert sorted(given[given >= 0].tolist()) == keep.tolist()
        assert (np.diff(row[given[given >= 0]]) <= 0).all(), "likeliest first"
        inside = row[token] - np.logaddexp.reduce(row[keep])
        assert reply.columns["mask_logprob"].values[at] == pytest.approx(inside, abs=1e-5)
        assert reply.logprobs[at] == pytest.approx(row[token], abs=1e-5), "log-probs stay before the mask"
        path.append(token)


async def test_forced_tokens_have_no_mask(engine: SGLangEngine) -> None:
    for forced in ([1, 2], [1, 2, 3, 4]):
        more = {"forced": token_ids(forced), "columns": ("mask_logprob", "kept")}
        reply = await engine.generate(ask(sampling=Sampling(top_k=3, max_tokens=4), **more))
        masked = np.isnan(reply.columns["mask_logprob"].values)
        assert masked.tolist() == [True] * len(forced) + [False] * (4 - len(forced))
        assert (reply.columns["kept"].values[: len(forced)] == -1).all()


@pytest.mark.parametrize("top_k", [0, 4097])
async def test_mask_that_the_server_cannot_tell_is_refused(fake: FakeSGLang, engine: SGLangEngine, top_k: int) -> None:
    with pytest.raises(UserError, match=f"asks for kept with top_k={top_k}; this server tells the mask of top_k 2 to 4096"):
        await engine.generate(ask(sampling=Sampling(top_k=top_k), columns=("kept",)))
    assert "/generate" not in dict(fake.requests)


async def test_mask_without_the_sampled_token_is_refused(
    fake: FakeSGLang, engine: SGLangEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fake._reply  # pyright: ignore[reportPrivateUsage]

    def wrong(body: Any, run: Any) -> dict[str, Any]:
        reply = whole(body, run)
        reply["meta_info"]["output_token_sampling_mask"][0] = [319]
        return reply

    monkeypatch.setattr(fake, "_reply", wrong)
    with pytest.raises(EngineError, match="6 masks that are not those of its 6 tokens"):
        await engine.generate(ask(sampling=Sampling(top_k=3, max_tokens=6), columns=("kept",)))
