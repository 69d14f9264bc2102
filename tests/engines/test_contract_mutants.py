"""The contract suite sees what is wrong: each mutation of an engine breaks the claim it is about."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrl.engines.contract import Engine, GenerateRequest, Generation, PauseMode, ScoreRequest, Scores, Weights
from agentrl.engines.sglang import SGLangEngine
from agentrl.engines.sglang.fake import FakeSGLang, random_weights, save_adapter
from agentrl.episode import EMPTY_IDS, Version, VersionSpan, digest_ids, token_ids
from agentrl.testing import EngineNonconforming, check_engine


class Mutant:
    """Passes everything on; subclasses change one thing."""

    def __init__(self, inner: Engine) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def generate(self, request: GenerateRequest) -> Generation:
        return self.after(request, await self.inner.generate(self.before(request)))

    def before(self, request: GenerateRequest) -> GenerateRequest:
        return request

    def after(self, request: GenerateRequest, reply: Generation) -> Generation:
        return reply


class DigestOfTheReplyAlone(Mutant):
    def after(self, request: GenerateRequest, reply: Generation) -> Generation:
        return replace(reply, digest=digest_ids(reply.ids))


class SpanOneShort(Mutant):
    def after(self, request: GenerateRequest, reply: Generation) -> Generation:
        return replace(reply, spans=tuple(replace(span, end=span.end - 1) for span in reply.spans))


class OneSpanOfTheLastVersion(Mutant):
    def after(self, request: GenerateRequest, reply: Generation) -> Generation:
        return replace(reply, spans=(VersionSpan(reply.spans[-1].version, 0, len(reply.ids)),) if reply.spans else ())


class LogprobsAfterTheMask(Mutant):
    def after(self, request: GenerateRequest, reply: Generation) -> Generation:
        return replace(reply, logprobs=reply.logprobs / 2) if request.sampling.top_k == 3 else reply


class LogprobsShiftedByOne(Mutant):
    def after(self, request: GenerateRequest, reply: Generation) -> Generation:
        return replace(reply, logprobs=np.roll(reply.logprobs, 1))


class LogprobsAtTemperatureOne(Mutant):
    def after(self, request: GenerateRequest, reply: Generation) -> Generation:
        return replace(reply, logprobs=reply.logprobs * np.float32(0.9)) if request.sampling.temperature == 2 else reply


class StopIdsDropped(Mutant):
    def before(self, request: GenerateRequest) -> GenerateRequest:
        return replace(request, sampling=replace(request.sampling, stop_ids=()))


class StopTokenTrimmed(Mutant):
    def after(self, request: GenerateRequest, reply: Generation) -> Generation:
        if reply.finish != "stop":
            return reply
        ids, prompt = reply.ids[:-1], request.prompt
        spans = tuple(replace(span, end=min(span.end, len(ids))) for span in reply.spans)
        return replace(reply, ids=ids, logprobs=reply.logprobs[:-1], spans=spans, digest=digest_ids(prompt, ids))


class SeedsIgnored(Mutant):
    counter = itertools.count()

    def before(self, request: GenerateRequest) -> GenerateRequest:
        return replace(request, seed=next(self.counter))


class OneSeedForAll(Mutant):
    def before(self, request: GenerateRequest) -> GenerateRequest:
        return replace(request, seed=0)


class TopKIgnored(Mutant):
    def before(self, request: GenerateRequest) -> GenerateRequest:
        return replace(request, sampling=replace(request.sampling, top_k=0))


class ForcedPrefixDropped(Mutant):
    def before(self, request: GenerateRequest) -> GenerateRequest:
        return replace(request, forced=EMPTY_IDS)


class MaxTokensCountDrawnOnesOnly(Mutant):
    def before(self, request: GenerateRequest) -> GenerateRequest:
        sampling = request.sampling
        return replace(request, sampling=replace(sampling, max_tokens=sampling.max_tokens + len(request.forced)))


class IdsRetokenised(Mutant):
    def before(self, request: GenerateRequest) -> GenerateRequest:
        prompt = request.prompt.copy()
        prompt[0] = (prompt[0] + 1) % 320
        return replace(request, parts=(token_ids(prompt),))


class ScoresOneLate(Mutant):
    async def score(self, request: ScoreRequest) -> Scores:
        scores = await self.inner.score(request)
        return replace(scores, logprobs=np.roll(scores.logprobs, 1))


class AbortIgnored(Mutant):
    async def abort(self, request_id: str) -> None:
        return


class PauseIgnored(Mutant):
    async def pause(self, mode: PauseMode = "in_place") -> None:
        return


class PublishesOnlyTheVersion(Mutant):
    async def publish(self, policy: str, weights: Weights, version: Version) -> None:
        await self.inner.publish(policy, random_weights(0), version)


class PublishResumes(Mutant):
    async def publish(self, policy: str, weights: Weights, version: Version) -> None:
        await self.inner.publish(policy, weights, version)
        await self.inner.resume()


class PublishForgotten(Mutant):
    async def publish(self, policy: str, weights: Weights, version: Version) -> None:
        return


class CancellationSwallowed(Mutant):
    """The caller leaves, the request goes on: its id stays taken."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self.left: dict[str, asyncio.Task[Generation]] = {}

    async def generate(self, request: GenerateRequest) -> Generation:
        if request.id in self.left and not self.left[request.id].done():
            raise ValueError(f"{request.id} still runs")
        self.left[request.id] = asyncio.ensure_future(self.inner.generate(request))
        return await asyncio.shield(self.left[request.id])


class StreamInOnePiece(Mutant):
    async def generate(self, request: GenerateRequest) -> Generation:
        reply = await self.inner.generate(replace(request, on_tokens=None))
        if request.on_tokens is not None:
            request.on_tokens(reply.ids, reply.logprobs)
        return reply


class StreamWithoutItsLastPiece(Mutant):
    def before(self, request: GenerateRequest) -> GenerateRequest:
        told: list[Any] = []

        def one_late(ids: Any, logprobs: Any) -> None:
            if told and request.on_tokens is not None:
                request.on_tokens(*told.pop())
            told.append((ids, logprobs))

        return replace(request, on_tokens=one_late if request.on_tokens is not None else None)


class StreamGoesOnAfterTheAbort(Mutant):
    def after(self, request: GenerateRequest, reply: Generation) -> Generation:
        if request.on_tokens is not None and reply.finish == "abort":
            request.on_tokens(token_ids([1]), np.zeros(1, np.float32))
        return reply


class ColumnOneShort(Mutant):
    def after(self, request: GenerateRequest, reply: Generation) -> Generation:
        return replace(reply, columns={name: replace(one, values=one.values[1:]) for name, one in reply.columns.items()})


class MaskOfOtherTokens(Mutant):
    def after(self, request: GenerateRequest, reply: Generation) -> Generation:
        if "kept" not in reply.columns or "mask_logprob" not in reply.columns:
            return reply
        kept = reply.columns["kept"]
        return replace(reply, columns={**reply.columns, "kept": replace(kept, values=(kept.values + 1) % 320)})


class MaskLogprobBeforeTheMask(Mutant):
    def after(self, request: GenerateRequest, reply: Generation) -> Generation:
        if "mask_logprob" not in reply.columns:
            return reply
        column = replace(reply.columns["mask_logprob"], values=reply.logprobs)
        return replace(reply, columns={**reply.columns, "mask_logprob": column})


class MemoryReleasedInNameOnly(Mutant):
    async def release_memory(self) -> None:
        return

    async def resume_memory(self) -> None:
        return


MUTANTS = {
    StreamInOnePiece: "pieces_join_to_the_reply",
    StreamWithoutItsLastPiece: "pieces_join_to_the_reply",
    StreamGoesOnAfterTheAbort: "aborted_stream_keeps_its_pieces",
    ColumnOneShort: "columns_are_given_or_refused",
    MaskOfOtherTokens: "masks_are_those_drawn_under",
    MaskLogprobBeforeTheMask: "masks_are_those_drawn_under",
    MemoryReleasedInNameOnly: "publish_follows_released_memory",
    DigestOfTheReplyAlone: "digest_is_of_prompt_and_reply",
    SpanOneShort: "spans_cover_the_reply",
    OneSpanOfTheLastVersion: "publish_in_flight_gives_two_spans",
    LogprobsAfterTheMask: "logprobs_say_where_the_mask_is",
    LogprobsShiftedByOne: "logprobs_match_scores",
    LogprobsAtTemperatureOne: "logprobs_are_of_the_tempered_softmax",
    StopIdsDropped: "stop_ids_end_the_reply",
    StopTokenTrimmed: "stop_ids_end_the_reply",
    SeedsIgnored: "seeds_reproduce",
    OneSeedForAll: "draws_follow_the_distribution",
    TopKIgnored: "greedy_takes_the_likeliest",
    ForcedPrefixDropped: "forced_prefix_counts_as_sampled",
    MaxTokensCountDrawnOnesOnly: "forced_prefix_counts_as_sampled",
    IdsRetokenised: "digest_is_of_prompt_and_reply",
    ScoresOneLate: "logprobs_match_scores",
    AbortIgnored: "abort_gives_what_was_sampled",
    PauseIgnored: "pause_in_place_stops_and_goes_on",
    PublishesOnlyTheVersion: "publish_changes_version_and_weights",
    PublishResumes: "publish_while_paused",
    PublishForgotten: "publish_changes_version_and_weights",
    CancellationSwallowed: "cancelling_frees_the_place",
}


@asynccontextmanager
async def mutated(kind: type[Mutant]) -> AsyncGenerator[Any, None]:
    async with (
        FakeSGLang(deterministic=True) as fake,
        SGLangEngine(fake.url, vocab_size=fake.vocab_size, memory_saver=True) as engine,
    ):
        mutant = kind(engine)
        yield mutant
        if isinstance(mutant, CancellationSwallowed):
            for task in mutant.left.values():
                task.cancel()
            await asyncio.wait(mutant.left.values())


@pytest.mark.parametrize("kind", MUTANTS, ids=lambda kind: kind.__name__)
async def test_mutation_is_caught_by_its_claim(kind: type[Mutant]) -> None:
    with pytest.raises(EngineNonconforming) as caught:
        await check_engine(lambda: mutated(kind), weights=random_weights, only=[MUTANTS[kind]])
    assert [broken.name for broken in caught.value.broken] == [MUTANTS[kind]]


class AdapterForAll(Mutant):
    async def publish(self, policy: str, weights: Weights, version: Version) -> None:
        for each in ("a", "b"):
            await self.inner.publish(each, weights, replace(version, policy=each))


class AdapterUnloadedUnderARequest(Mutant):
    """What runs is aborted so that the old adapter may go."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self.running: set[str] = set()

    async def generate(self, request: GenerateRequest) -> Generation:
        self.running.add(request.id)
        return await self.inner.generate(request)

    async def publish(self, policy: str, weights: Weights, version: Version) -> None:
        for name in self.running:
            await self.inner.abort(name)
        await self.inner.publish(policy, weights, version)


class AdapterToldBeforeItServes(Mutant):
    def after(self, request: GenerateRequest, reply: Generation) -> Generation:
        spans = tuple(replace(span, version=self.inner.version(request.policy)) for span in reply.spans)
        return replace(reply, spans=spans)


ADAPTER_MUTANTS = {
    AdapterForAll: "publish_of_an_adapter_leaves_the_others",
    AdapterUnloadedUnderARequest: "publish_of_an_adapter_spares_what_runs",
    AdapterToldBeforeItServes: "publish_of_an_adapter_spares_what_runs",
    Mutant: "",
}


@pytest.mark.parametrize("kind", ADAPTER_MUTANTS, ids=lambda kind: kind.__name__)
async def test_mutation_of_adapters_is_caught_by_its_claim(kind: type[Mutant], tmp_path: Path) -> None:
    @asynccontextmanager
    async def mutant() -> AsyncGenerator[Any, None]:
        async with (
            FakeSGLang(deterministic=True, lora=True) as fake,
            SGLangEngine(fake.url, policy="base", adapters=("a", "b"), vocab_size=320) as engine,
        ):
            yield kind(engine)

    def adapter(number: int) -> Weights:
        return {"path": save_adapter(tmp_path / str(number), number)}

    claims = {claim for claim in ADAPTER_MUTANTS.values() if claim}
    if not ADAPTER_MUTANTS[kind]:
        assert set(await check_engine(mutant, "a", weights=adapter, others=["b"], only=claims)) == claims
        return
    with pytest.raises(EngineNonconforming) as caught:
        await check_engine(mutant, "a", weights=adapter, others=["b"], only=[ADAPTER_MUTANTS[kind]])
    assert [broken.name for broken in caught.value.broken] == [ADAPTER_MUTANTS[kind]]


async def test_unmutated_engine_passes_the_claims_of_the_mutants() -> None:
    held = await check_engine(lambda: mutated(Mutant), weights=random_weights, only=set(MUTANTS.values()))
    assert set(held) == set(MUTANTS.values())


async def test_error_names_every_broken_claim() -> None:
    with pytest.raises(EngineNonconforming) as caught:
        await check_engine(
            lambda: mutated(DigestOfTheReplyAlone), only=["digest_is_of_prompt_and_reply", "many_requests_are_all_answered"]
        )
    assert len(caught.value.broken) == 2
    assert "breaks 2 of 2 claims" in str(caught.value) and "digest is not digest_ids(prompt, ids)" in str(caught.value)


async def test_foreign_errors_of_an_engine_are_failures_not_crashes() -> None:
    class Raises(Mutant):
        async def generate(self, request: GenerateRequest) -> Generation:
            raise ZeroDivisionError("inside the engine")

    with pytest.raises(EngineNonconforming, match="ZeroDivisionError: inside the engine"):
        await check_engine(lambda: mutated(Raises), only=["reply_has_shape"])


async def test_engine_that_hangs_fails_within_patience() -> None:
    class Hangs(Mutant):
        async def generate(self, request: GenerateRequest) -> Generation:
            await asyncio.Event().wait()
            raise AssertionError

    with pytest.raises(EngineNonconforming, match=r"nothing within 0\.2 s"):
        await check_engine(lambda: mutated(Hangs), only=["reply_has_shape"], patience_s=0.2)
