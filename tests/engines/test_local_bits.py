"""A request's tokens and log-probs depend on weights, ids and seed alone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_local_parity import LLAMA, QWEN, ids, request, same, save_model, serving

from agentrl.engines.contract import GenerateRequest, Generation, ScoreRequest
from agentrl.engines.local import LocalEngine
from agentrl.engines.local.decoder import Decoder, fuse
from agentrl.engines.local.shapes import WIDTHS, Shapes, find_shapes
from agentrl.transformer import matmul
from agentrl.transformer.config import ModelConfig
from agentrl.transformer.weights import init_weights

POOL = 24


def pool() -> list[GenerateRequest]:
    """Requests that share prefixes of several lengths, sample in several ways, and differ in size."""
    random = np.random.default_rng(11)
    stems = [ids(90, 100), ids(40, 101), ids(300, 102)]
    made: list[GenerateRequest] = []
    for index in range(POOL):
        stem = stems[index % 3][: int(random.integers(20, 300))]
        prompt = np.concatenate((stem, ids(int(random.integers(1, 60)), index))).astype(np.int32)
        how = [{}, {"temperature": 0.7}, {"top_k": 6}, {"top_p": 0.8}, {"temperature": 0.0}][index % 5]
        forced = ids(int(random.integers(1, 20)), 50 + index) if index % 4 == 0 else ids(0, 0)
        tokens = len(forced) + int(random.integers(1, 30))
        made.append(request(f"r{index}", prompt, seed=index, forced=forced, max_tokens=tokens, columns=("entropy",), **how))
    return made


class Alone:
    """What each request of the pool gives when it is the only one, with no prefix to reuse."""

    def __init__(self, folder: Path) -> None:
        self.requests = pool()
        self.folder = folder
        self.results: list[Generation] = asyncio.run(self._run())

    async def _run(self) -> list[Generation]:
        async with serving(self.folder, prefix_cache_tokens=0) as engine:
            return [await engine.generate(each) for each in self.requests]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    return Alone(save_model(tmp_path_factory.mktemp("model")))


Event = tuple[str, int]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    events=st.lists(
        st.one_of(
            st.tuples(st.just("ask"), st.integers(0, POOL - 1)),
            st.tuples(st.just("ask"), st.integers(0, POOL - 1)),
            st.tuples(st.just("step"), st.integers(1, 3)),
            st.tuples(st.just("cancel"), st.integers(0, POOL - 1)),
            st.tuples(st.sampled_from(["in_place", "retract"]), st.integers(0, 3)),
        ),
        min_size=8,
        max_size=40,
    ),
    slots=st.sampled_from([2, 5, 17, 64]),
    kept=st.sampled_from([0, 700, None]),
)
def test_batch_mates_arrival_prefixes_and_pauses_change_no_bit(
    alone: Alone, events: list[Event], slots: int, kept: int | None
) -> None:
    results = asyncio.run(play(alone, events, slots, kept))
    for index, got in results:
        want = alone.results[index]
        assert same(got, want)
        assert got.columns["entropy"].values.tobytes() == want.columns["entropy"].values.tobytes()
        assert (got.finish, got.digest) == (want.finish, want.digest)


async def play(alone: Alone, events: list[Event], slots: int, kept: int | None) -> list[tuple[int, Generation]]:
    """Plays the events; "step" waits for as many scores, which take the engine at least that many steps."""
    running: dict[str, tuple[int, asyncio.Task[Generation]]] = {}
    async with (
        serving(alone.folder, slots=slots, prefix_cache_tokens=kept) as engine,
        asyncio.TaskGroup() as group,
    ):
        for count, (what, which) in enumerate(events):
            if what == "ask":
                each = alone.requests[which]
                named = GenerateRequest(
                    f"{count}", each.policy, each.parts, each.sampling, each.seed, each.forced, columns=each.columns
                )
                running[named.id] = (which, group.create_task(engine.generate(named)))
            elif what == "step":
                for turn in range(which):
                    await engine.score(ScoreRequest(f"score {count} {turn}", "policy", ids(9, count)))
            elif what == "cancel" and running:
                name = list(running)[which % len(running)]
                running.pop(name)[1].cancel()
            elif what in ("in_place", "retract"):
                await engine.pause(what)
                for _ in range(which):
                    await asyncio.sleep(0)
                await engine.resume()
        return [(index, await task) for index, task in running.values()]


@pytest.mark.parametrize("config", [QWEN, LLAMA])
async def test_decode_gives_what_prefill_gives(config: ModelConfig, tmp_path: Path) -> None:
    folder = save_model(tmp_path, config)
    async with serving(folder, prefix_cache_tokens=0) as engine:
        long = await engine.generate(request("a", ids(470, 1), max_tokens=80))
        forced = await engine.generate(request("b", ids(470, 1), forced=long.ids, max_tokens=80))
    assert same(long, forced)


async def test_two_threads_change_no_bit_between_alone_and_together(alone: Alone) -> None:
    before = torch.get_num_threads()
    try:
        async with serving(alone.folder, threads=2, prefix_cache_tokens=0) as engine:
            one_by_one = [await engine.generate(each) for each in alone.requests[1:4]]
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(engine.generate(each)) for each in alone.requests[1:12]]
        assert all(same(task.result(), each) for task, each in zip(tasks, one_by_one, strict=False))
    finally:
        torch.set_num_threads(before)


def decoder(config: ModelConfig = QWEN) -> Decoder:
    return Decoder(config, fuse(config, init_weights(config, 0)), 256, Shapes())


def test_the_self_test_finds_agreeing_shapes_here() -> None:
    shapes = find_shapes(decoder(), 64)
    assert shapes.exact
    assert len(shapes.widths) > 1
    assert len(shapes.key_tails) > 1


def spoil(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, wrong: Callable[[Any], float]) -> None:
    """Makes a function of the module differ in the last bits as `wrong` says of its second tensor's or first's shape."""
    real = getattr(module, name)

    def other(*args: Any, **kwargs: Any) -> torch.Tensor:
        return real(*args, **kwargs) * (1 + wrong(args))

    monkeypatch.setattr(module, name, other)


def test_the_self_test_forbids_widths_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, matmul, "product", lambda args: 1e-6 if len(args[0]) in (8, 64) else 0.0)
    shapes = find_shapes(decoder(), 64)
    assert shapes.exact
    assert not {8, 64} & set(shapes.widths)
    assert (shapes.width(5), shapes.width(60)) == (12, 80)


def test_the_self_test_forbids_key_counts_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, F, "scaled_dot_product_attention", lambda args: 1e-6 if args[1].shape[2] == 96 else 0.0)
    assert find_shapes(decoder(), 64).keys(70) == 128


def test_one_fixed_width_is_left_when_none_agree(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    spoil(monkeypatch, matmul, "product", lambda args: 1e-6 * len(args[0]))
    with caplog.at_level(logging.WARNING):
        shapes = find_shapes(decoder(), 64)
    assert shapes.exact
    assert shapes.widths == (WIDTHS[-1],)
    assert "all work is padded to 256" in caplog.text


async def test_an_engine_whose_rows_differ_by_place_says_that_it_is_not_deterministic(
    alone: Alone, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = matmul.product

    def by_place(x: torch.Tensor, *args: Any) -> torch.Tensor:
        out = real(x, *args)
        return out * (1 + 1e-6 * torch.arange(len(out))[:, None])

    monkeypatch.setattr(matmul, "product", by_place)
    engine = LocalEngine(alone.folder, threads=1)
    assert engine.info.offers.deterministic
    with caplog.at_level(logging.WARNING):
        async with engine:
            assert not engine.info.offers.deterministic
            assert len((await engine.generate(alone.requests[0])).ids) == alone.requests[0].sampling.max_tokens
    assert "not deterministic" in caplog.text
