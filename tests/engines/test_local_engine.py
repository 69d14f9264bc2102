"""What the local engine does with requests, weights, pauses and wrong input."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_local_parity import LLAMA, QWEN, ids, reference, request, same, save_model, serving, taken
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import WordLevel

from agentrl.engines.contract import Engine, GenerateRequest, Generation, ScoreRequest
from agentrl.engines.local import LocalEngine
from agentrl.episode import EMPTY_IDS, IntArray, Sampling, Version, VersionSpan, digest_ids
from agentrl.errors import ContextOverflow, EngineAborted, EngineError, UserError
from agentrl.transformer.layers import attend_causal, forward, logits
from agentrl.transformer.weights import digest_weights, init_weights, load_weights, save_weights

NEW = init_weights(QWEN, seed=9, std=0.25)
V1 = Version("run", "policy", 1, digest_weights(NEW))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


async def steps(engine: LocalEngine, count: int, policy: str = "policy") -> None:
    """Returns when the engine has made at least `count` steps more; running requests have drawn as many tokens."""
    for turn in range(count):
        await engine.score(ScoreRequest(f"tick {turn}", policy, ids(3, turn)))


async def begin(engine: LocalEngine, group: asyncio.TaskGroup, each: GenerateRequest) -> asyncio.Task[Generation]:
    """A request that runs and has drawn at least two tokens."""
    task = group.create_task(engine.generate(each))
    await asyncio.sleep(0)
    await steps(engine, 3, each.policy)
    return task


def spans(got: Generation) -> list[tuple[int, int, int, str]]:
    return [(span.version.step, span.start, span.end, span.kv) for span in got.spans]


async def test_it_is_an_engine_and_says_what_it_is(folder: Path) -> None:
    async with serving(folder, max_context=200) as engine:
        assert isinstance(engine, Engine)
        assert (engine.info.vocab_size, engine.info.max_context) == (97, 200)
        assert engine.info.offers.deterministic
        assert engine.version("policy") == Version("local", "policy", 0, digest_weights(load_weights(folder)))


# weights


async def test_weights_published_in_flight_serve_from_the_next_token_on_with_the_old_cache_kept(folder: Path) -> None:
    prompt = ids(30, 1)
    async with serving(folder) as engine, asyncio.TaskGroup() as group:
        before = await engine.generate(request("before", prompt, max_tokens=200))
        task = await begin(engine, group, request("a", prompt, max_tokens=200))
        await engine.publish("policy", NEW, V1)
        got = await task
        assert engine.version("policy") == V1
    ((_, _, cut, _), _) = spans(got)
    assert spans(got) == [(0, 0, cut, "kept"), (1, cut, 200, "kept")]
    assert 2 <= cut < 200
    assert (got.ids[:cut] == before.ids[:cut]).all()
    assert (got.logprobs[:cut] == before.logprobs[:cut]).all()
    path = np.concatenate((prompt, got.ids))
    assert np.abs(mixed_logprobs(folder, path, 30 + cut - 1)[29:] - got.logprobs).max() < 1e-5


def mixed_logprobs(folder: Path, path: IntArray, cut: int) -> np.ndarray[Any, Any]:
    """Log-probs of path[1:] where tokens before `cut` were computed by the old weights and the rest by `NEW`, KV kept."""
    kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def remember(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        kept[layer] = (k, v)
        return attend_causal(layer, q, k, v)

    def go_on(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        keys, values = (torch.cat(pair).transpose(0, 1)[None] for pair in zip(kept[layer], (k, v), strict=True))
        seen = torch.arange(keys.shape[2]) <= cut + torch.arange(len(q))[:, None]
        out = F.scaled_dot_product_attention(q.transpose(0, 1)[None], keys, values, attn_mask=seen, enable_gqa=True)
        return out[0].transpose(0, 1)

    old, tokens, at = load_weights(folder), torch.tensor(path.tolist()), torch.arange(len(path))
    first = logits(QWEN, old, forward(QWEN, old, tokens[:cut], at[:cut], remember))
    rest = logits(QWEN, NEW, forward(QWEN, NEW, tokens[cut:], at[cut:], go_on))
    rows = torch.cat((first, rest)).log_softmax(-1)[:-1]
    return rows.gather(1, tokens[1:, None])[:, 0].numpy()


async def test_a_retracted_request_recomputes_its_cache_with_the_new_weights(folder: Path, tmp_path: Path) -> None:
    prompt = ids(30, 2)
    async with serving(folder) as engine, asyncio.TaskGroup() as group:
        task = await begin(engine, group, request("a", prompt, max_tokens=150))
        await engine.pause("retract")
        await engine.publish("policy", NEW, V1)
        await engine.resume()
        got = await task
    ((_, _, cut, _), _) = spans(got)
    assert spans(got) == [(0, 0, cut, "kept"), (1, cut, 150, "recomputed")]
    path = [*prompt, *got.ids]
    save_weights(tmp_path, QWEN, NEW)
    assert np.abs(taken(reference(folder, path), path, 30)[:cut] - got.logprobs[:cut]).max() < 1e-5
    assert np.abs(taken(reference(tmp_path, path), path, 30)[cut:] - got.logprobs[cut:]).max() < 1e-5


async def test_a_cache_of_several_versions_is_recomputed_by_a_later_retraction(folder: Path) -> None:
    async with serving(folder) as engine, asyncio.TaskGroup() as group:
        task = await begin(engine, group, request("a", ids(30, 2), max_tokens=200))
        await engine.publish("policy", NEW, V1)
        await steps(engine, 3)
        await engine.pause("retract")
        await engine.resume()
        got = await task
    assert [(step, kv) for step, _, _, kv in spans(got)] == [(0, "kept"), (1, "kept"), (1, "recomputed")]
    assert [span.start for span in got.spans[1:]] == [span.end for span in got.spans[:-1]]


async def test_a_request_that_has_drawn_nothing_begins_again_under_new_weights(folder: Path) -> None:
    each = request("a", ids(600, 3), max_tokens=8, forced=ids(4, 4))
    async with serving(folder) as engine, asyncio.TaskGroup() as group:
        await engine.pause()
        task = group.create_task(engine.generate(each))
        await asyncio.sleep(0)
        await engine.resume()
        await engine.publish("policy", NEW, V1)
        got = await task
        again = await engine.generate(request("b", ids(600, 3), max_tokens=8, forced=ids(4, 4)))
    assert spans(got) == [(1, 0, 8, "kept")]
    assert same(got, again)


async def test_prefixes_of_old_weights_are_never_reused(folder: Path) -> None:
    prompt = ids(80, 5)
    async with serving(folder) as engine:
        await engine.generate(request("a", prompt))
        assert (await engine.generate(request("b", prompt))).cached_tokens == 79
        await engine.publish("policy", NEW, V1)
        assert (await engine.generate(request("c", prompt))).cached_tokens == 0


async def test_published_weights_are_copied(folder: Path) -> None:
    weights = {name: value.clone() for name, value in NEW.items()}
    async with serving(folder) as engine:
        await engine.publish("policy", weights, V1)
        first = await engine.generate(request("a", ids(20, 6)))
        for value in weights.values():
            value.zero_()
        assert same(first, await engine.generate(request("b", ids(20, 6))))


async def test_weights_may_be_given_as_a_folder(folder: Path, tmp_path: Path) -> None:
    save_weights(tmp_path, QWEN, NEW)
    async with serving(folder) as engine:
        await engine.publish("policy", NEW, V1)
        given = await engine.generate(request("a", ids(20, 6)))
        await engine.publish("policy", {"path": str(tmp_path)}, V1)
        assert same(given, await engine.generate(request("b", ids(20, 6))))


async def test_wrong_weights_are_refused_and_change_nothing(folder: Path) -> None:
    wrong = NEW | {"model.norm.weight": torch.ones(5)}
    async with serving(folder) as engine:
        before = await engine.generate(request("a", ids(20, 6)))
        with pytest.raises(UserError, match=r"model\.norm\.weight has shape \(5,\)"):
            await engine.publish("policy", wrong, V1)
        assert engine.version("policy").step == 0
        assert same(before, await engine.generate(request("b", ids(20, 6))))


async def test_policies_have_their_own_weights_and_sizes(folder: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path, LLAMA, seed=4)
    async with serving({"one": folder, "two": other}) as engine, asyncio.TaskGroup() as group:
        tasks = {name: group.create_task(engine.generate(request(name, ids(20, 7), policy=name))) for name in ("one", "two")}
        done = {name: await task for name, task in tasks.items()}
        await engine.publish("one", NEW, Version("run", "one", 1))
        after = await engine.generate(request("x", ids(20, 7), policy="two"))
    async with serving(other) as engine:
        assert same(done["two"], await engine.generate(request("y", ids(20, 7))))
    assert same(done["two"], after)
    assert not same(done["one"], done["two"])


# requests


@pytest.mark.parametrize("cut", [1, 7, 15])
async def test_a_reply_cut_after_k_tokens_goes_on_as_if_uncut(folder: Path, cut: int) -> None:
    how: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "seed": 5}
    async with serving(folder) as engine:
        whole = await engine.generate(request("a", ids(25, 8), **how))
        rest = await engine.generate(request("b", ids(25, 8), forced=whole.ids[:cut], **how))
    assert same(whole, rest)
    assert whole.digest == rest.digest == digest_ids(ids(25, 8), whole.ids)


async def test_seeds_decide_what_is_drawn(folder: Path) -> None:
    async with serving(folder) as engine:
        drawn = [await engine.generate(request(f"{seed}", ids(25, 8), seed=seed)) for seed in (0, 1, 2**63, 0)]
    assert same(drawn[0], drawn[3])
    assert len({each.ids.tobytes() for each in drawn}) == 3


async def test_parts_are_joined(folder: Path) -> None:
    prompt = ids(25, 8)
    async with serving(folder) as engine:
        whole = await engine.generate(request("a", prompt))
        parts = await engine.generate(GenerateRequest("b", "policy", (prompt[:4], prompt[4:]), Sampling(max_tokens=16), 0))
    assert same(whole, parts)


async def test_a_stop_id_ends_the_reply_and_is_part_of_it(folder: Path) -> None:
    async with serving(folder) as engine:
        whole = await engine.generate(request("a", ids(25, 9), max_tokens=40))
        stop = int(whole.ids[12])
        first = whole.ids.tolist().index(stop)
        got = await engine.generate(request("b", ids(25, 9), max_tokens=40, stop_ids=(500, stop)))
        forced = await engine.generate(request("c", ids(25, 9), max_tokens=40, forced=got.ids, stop_ids=(stop,)))
    assert got.ids.tolist() == whole.ids[: first + 1].tolist()
    assert (got.finish, got.matched) == ("stop", stop)
    assert same(got, forced)
    assert forced.finish == "stop"


async def test_a_stop_string_ends_the_reply_at_the_token_that_completes_it(tmp_path: Path) -> None:
    words = {"".join(chr(97 + int(digit)) for digit in f"{index:02d}"): index for index in range(97)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="aa"))
    tokenizer.decoder = ByteLevelDecoder()
    folder = save_model(tmp_path)
    tokenizer.save(str(folder / "tokenizer.json"))
    async with serving(folder) as engine:
        whole = await engine.generate(request("a", ids(25, 9), max_tokens=40))
        text = tokenizer.decode(whole.ids.tolist())
        stop = text[17:20]  # from within token 8 to within token 9
        ends = (text.index(stop) + 2) // 2 + 1
        got = await engine.generate(request("b", ids(25, 9), max_tokens=40, stop=("never", stop)))
        plain = await engine.generate(request("c", ids(25, 9), max_tokens=40, stop=("never",)))
    assert (got.finish, got.matched) == ("stop", stop)
    assert got.ids.tolist() == whole.ids[:ends].tolist()
    assert same(plain, whole)


async def test_the_context_limit_ends_a_reply(folder: Path) -> None:
    async with serving(folder, max_context=40) as engine:
        got = await engine.generate(request("a", ids(30, 1), max_tokens=100))
    assert (len(got.ids), got.finish) == (10, "length")


async def test_more_requests_than_slots_or_memory_wait_their_turn(folder: Path) -> None:
    async with serving(folder) as engine:
        alone = [await engine.generate(request(f"{n}", ids(20 + n, n), max_tokens=5 + n)) for n in range(12)]
    for options in ({"slots": 3}, {"cache_bytes": 1}):
        async with serving(folder, max_context=64, **options) as engine, asyncio.TaskGroup() as group:
            tasks = [group.create_task(engine.generate(request(f"{n}", ids(20 + n, n), max_tokens=5 + n))) for n in range(12)]
        assert all(same(task.result(), each) for task, each in zip(tasks, alone, strict=True))


async def test_times_are_told(folder: Path) -> None:
    async with serving(folder) as engine:
        got = await engine.generate(request("a", ids(30, 1)))
    assert set(got.times) == {"queued", "prefill", "decode"}
    assert all(value >= 0 for value in got.times.values())


# prefixes


async def test_each_turn_of_an_episode_prefills_only_what_is_new(folder: Path) -> None:
    path, results = ids(70, 1), []
    async with serving(folder) as engine, serving(folder, prefix_cache_tokens=0) as plain:
        for turn in range(4):
            got = await engine.generate(request(f"{turn}", path, session="e", seed=turn))
            want = await plain.generate(request(f"{turn}", path, session="e", seed=turn))
            assert same(got, want)
            results.append((got.cached_tokens, len(path)))
            path = np.concatenate((path, got.ids, ids(9, turn)))
    assert [cached for cached, _ in results] == [0, *(length + 15 for _, length in results[:-1])]


async def test_siblings_that_arrive_together_compute_their_prompt_once(folder: Path) -> None:
    async with serving(folder) as engine, asyncio.TaskGroup() as group:
        tasks = [group.create_task(engine.generate(request(f"{n}", ids(100, 1), seed=n))) for n in range(8)]
    assert sorted(task.result().cached_tokens for task in tasks) == [0] + [99] * 7


async def test_the_least_recently_used_prefix_is_dropped_first(folder: Path) -> None:
    async with serving(folder, prefix_cache_tokens=220) as engine:
        for name, seed in (("a", 1), ("b", 2), ("a", 1), ("c", 3)):  # each keeps about 100
            await engine.generate(request(name, ids(90, seed), max_tokens=10))
        cached = [(await engine.generate(request("x", ids(90, seed), max_tokens=1))).cached_tokens for seed in (1, 2)]
    assert cached == [89, 0]


async def test_a_score_reuses_what_stands_before_its_start(folder: Path) -> None:
    path = ids(120, 4)
    async with serving(folder) as engine:
        first = await engine.score(ScoreRequest("a", "policy", path, start=100))
        again = await engine.score(ScoreRequest("b", "policy", path, start=100))
        whole = await engine.score(ScoreRequest("c", "policy", path))
    assert first.logprobs.tobytes() == again.logprobs.tobytes() == whole.logprobs[99:].tobytes()


# abort, cancel, pause


async def test_an_aborted_request_gives_what_it_had(folder: Path) -> None:
    async with serving(folder) as engine, asyncio.TaskGroup() as group:
        whole = await engine.generate(request("w", ids(30, 1), max_tokens=300, columns=("entropy",)))
        task = await begin(engine, group, request("a", ids(30, 1), max_tokens=300, columns=("entropy",)))
        await engine.abort("a")
        got = await task
        await engine.abort("a")
        await engine.abort("never heard of")
    count = len(got.ids)
    assert got.finish == "abort"
    assert 2 <= count < 300
    assert (got.ids == whole.ids[:count]).all()
    assert (got.logprobs == whole.logprobs[:count]).all()
    assert len(got.columns["entropy"].values) == got.spans[-1].end == count
    assert got.digest == digest_ids(ids(30, 1), got.ids)


async def test_a_waiting_request_aborts_with_nothing(folder: Path) -> None:
    async with serving(folder, slots=1) as engine, asyncio.TaskGroup() as group:
        task = group.create_task(engine.generate(request("a", ids(30, 1), max_tokens=300)))
        behind = group.create_task(engine.generate(request("b", ids(30, 2))))
        await asyncio.sleep(0)
        await engine.abort("b")
        got = await behind
        await engine.abort("a")
        await task
    assert (len(got.ids), got.finish, got.spans, got.digest) == (0, "abort", (), digest_ids(ids(30, 2)))


async def test_an_aborted_score_raises(folder: Path) -> None:
    async with serving(folder) as engine:
        await engine.pause()
        task = asyncio.ensure_future(engine.score(ScoreRequest("s", "policy", ids(30, 1))))
        await asyncio.sleep(0)
        await engine.abort("s")
        with pytest.raises(EngineAborted, match="'s' was aborted"):
            await task


async def test_a_cancelled_caller_frees_its_slot(folder: Path) -> None:
    async with serving(folder, slots=2) as engine:
        tasks = [asyncio.ensure_future(engine.generate(request(f"{n}", ids(30, n), max_tokens=900))) for n in range(5)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        done, _ = await asyncio.wait(tasks)
        assert all(task.cancelled() for task in done)
        got = await engine.generate(request("0", ids(30, 9), max_tokens=3))  # the id is free again
        assert got.times["queued"] < 5
        assert len(got.ids) == 3


@pytest.mark.parametrize("mode", ["in_place", "retract"])
async def test_a_pause_holds_everything_and_loses_nothing(folder: Path, mode: Any) -> None:
    async with serving(folder, prefix_cache_tokens=0) as engine, asyncio.TaskGroup() as group:
        whole = await engine.generate(request("w", ids(30, 1), max_tokens=120))
        task = await begin(engine, group, request("a", ids(30, 1), max_tokens=120))
        await engine.pause(mode)
        late = group.create_task(engine.generate(request("b", ids(30, 1), max_tokens=1)))
        for _ in range(20):
            await engine.pause(mode)  # a round through the engine's thread each
        assert not task.done()
        assert not late.done()
        await engine.resume()
        got = await task
    assert same(got, whole)
    assert spans(got) == [(0, 0, 120, "kept")]
    assert len(late.result().ids) == 1


async def test_a_pause_that_aborts_ends_running_and_waiting_requests(folder: Path) -> None:
    async with serving(folder, slots=2) as engine, asyncio.TaskGroup() as group:
        tasks = [group.create_task(engine.generate(request(f"{n}", ids(30, n), max_tokens=900))) for n in range(5)]
        await asyncio.sleep(0)
        await engine.pause("abort")
        assert all(task.done() or not task.cancelled() for task in tasks)
        assert [(await task).finish for task in tasks] == ["abort"] * 5
        await engine.resume()
        assert len((await engine.generate(request("x", ids(30, 1)))).ids) == 16


# wrong input, broken engines


async def test_requests_that_cannot_be_served_are_refused_with_what_to_do(folder: Path) -> None:
    good = ids(5, 1)
    wrong: list[tuple[GenerateRequest, str]] = [
        (request("a", np.array([1, 97], np.int32)), "token id 97 is outside the vocabulary of 97"),
        (request("a", np.array([-1], np.int32)), "token id -1"),
        (request("a", good, forced=np.array([400], np.int32)), "forced prefix: token id 400"),
        (request("a", EMPTY_IDS), "the prompt is empty"),
        (request("a", good, policy="other"), "'other' is not served here; this engine serves 'policy'"),
        (request("a", good, forced=ids(17, 1)), "17 forced tokens exceed max_tokens=16"),
        (request("a", good, columns=("value",)), "offers entropy only"),
        (request("a", good, temperature=-1.0), "temperature must be"),
        (request("a", good, top_p=0.0), "top_p must be"),
        (request("a", good, top_k=-1), "top_k must be"),
        (request("a", good, max_tokens=0), "max_tokens must be"),
        (request("a", good, stop=("x",)), r"tokenizer\.json"),
        (request("a", good, stop=("",)), "empty stop string"),
    ]
    async with serving(folder) as engine:
        for each, said in wrong:
            with pytest.raises(UserError, match=said):
                await engine.generate(each)
        with pytest.raises(UserError, match="start must be 1 to 5"):
            await engine.score(ScoreRequest("s", "policy", good, start=0))
        with pytest.raises(UserError, match="not served"):
            engine.version("other")
        assert len((await engine.score(ScoreRequest("s", "policy", good, start=5))).logprobs) == 0


async def test_what_does_not_fit_the_context_is_told_with_numbers(folder: Path) -> None:
    async with serving(folder, max_context=32) as engine:
        assert len((await engine.generate(request("a", ids(31, 1)))).ids) == 1
        with pytest.raises(ContextOverflow, match="32 prompt tokens and 1 to sample do not fit the context of 32"):
            await engine.generate(request("a", ids(32, 1)))
        with pytest.raises(ContextOverflow, match="30 prompt tokens and 3 to sample"):
            await engine.generate(request("a", ids(30, 1), forced=ids(3, 1)))
        with pytest.raises(ContextOverflow, match="33 ids do not fit"):
            await engine.score(ScoreRequest("s", "policy", ids(33, 1)))


async def test_an_id_that_is_running_is_refused(folder: Path) -> None:
    async with serving(folder) as engine, asyncio.TaskGroup() as group:
        task = await begin(engine, group, request("a", ids(30, 1), max_tokens=300))
        with pytest.raises(UserError, match="'a' is already running"):
            await engine.generate(request("a", ids(30, 1)))
        await engine.abort("a")
        await task


def test_a_wrong_folder_is_refused_when_the_engine_is_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        LocalEngine(tmp_path / "absent")
    with pytest.raises(UserError, match="no models"):
        LocalEngine({})
    with pytest.raises(UserError, match="slots must be"):
        LocalEngine(save_model(tmp_path), slots=0)


async def test_weights_that_cannot_be_read_are_told_on_entering(tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    (folder / "model.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match="broken or half written"):
        async with serving(folder):
            pass


async def test_an_engine_that_is_not_entered_says_so(folder: Path) -> None:
    with pytest.raises(EngineError, match="not entered"):
        await LocalEngine(folder).generate(request("a", ids(3, 1)))


async def test_a_failure_in_the_thread_fails_all_requests_and_is_remembered(folder: Path) -> None:
    broken = NEW | {"model.norm.weight": torch.full((32,), float("nan"))}
    async with serving(folder) as engine:
        await engine.pause()
        tasks = [asyncio.ensure_future(engine.generate(request(f"{n}", ids(30, n)))) for n in range(3)]
        await asyncio.sleep(0)
        await engine.publish("policy", broken, V1)
        await engine.resume()
        await asyncio.wait(tasks)
        assert all("weights are broken" in str(task.exception()) for task in tasks)
        with pytest.raises(EngineError, match=r"the local engine failed: .*weights are broken"):
            await engine.generate(request("x", ids(30, 1)))
        with pytest.raises(EngineError, match="the local engine failed"):
            await engine.pause()


async def test_leaving_the_engine_fails_what_still_runs(folder: Path) -> None:
    async with serving(folder) as engine:
        await engine.pause()
        task = asyncio.ensure_future(engine.generate(request("a", ids(30, 1))))
        await asyncio.sleep(0)
    with pytest.raises(EngineError, match="closed"):
        await task


async def test_an_engine_may_be_entered_again(folder: Path) -> None:
    engine = LocalEngine(folder, threads=1)
    async with engine:
        first = await engine.generate(request("a", ids(30, 1)))
    async with engine:
        assert same(first, await engine.generate(request("a", ids(30, 1))))


def test_a_span_covers_every_token_of_a_plain_reply(folder: Path) -> None:
    async def one() -> Generation:
        async with serving({"searcher": folder}, lineage="run") as engine:
            return await engine.generate(request("a", ids(30, 1), policy="searcher"))

    got = asyncio.run(one())
    assert got.spans == (VersionSpan(Version("run", "searcher", 0, digest_weights(load_weights(folder))), 0, 16),)


async def test_a_checkpoint_is_served_under_the_version_it_was_saved_with(tmp_path):
    from agentrl.episode import Version
    from agentrl.learning.local import LocalLearner
    from agentrl.objectives import NLL
    from agentrl.transformer.config import ModelConfig
    from agentrl.transformer.weights import init_weights, save_weights

    config = ModelConfig("Qwen3ForCausalLM", 64, 16, 1, 1, 1, 16, 32, 64)
    save_weights(tmp_path / "model", config.to_json(), init_weights(config, 0))
    learner = LocalLearner("policy", tmp_path / "model", NLL(), lineage="mine")
    learner.save(tmp_path / "saved")
    async with LocalEngine(tmp_path / "saved", lineage="other") as engine:
        assert engine.version("policy") == learner.version == Version("mine", "policy", 0, learner.version.digest)
