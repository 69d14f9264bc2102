"""An engine whose policy is a Python function, over a real tokenizer and template."""

from __future__ import annotations

import asyncio
import json
import random
import time
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from agentrl.engines.contract import GenerateRequest
from agentrl.engines.scripted import Scripted
from agentrl.episode import EMPTY_IDS, IntArray, Sampling, Version, digest_ids, token_ids
from agentrl.errors import EngineError
from agentrl.rendering.contract import Message
from agentrl.rendering.template import TemplateRenderer
from agentrl.testing import check_engine

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> TemplateRenderer:
    folder: Path = tmp_path_factory.mktemp("bytes")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"chat_template": TEMPLATE, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 258}))
    return TemplateRenderer.from_folder(folder)


def sums(prompt: str, rng: random.Random) -> str:
    """Answers "a+b" in the last user message, with a word drawn at random before it."""
    if "assistant\n" in prompt and prompt.rsplit("assistant\n", 1)[1]:
        return "!"
    question = prompt.rsplit("user\n", 1)[1].split("<|im_end|>")[0]
    left, right = question.split("+")
    return f"{rng.choice(['well', 'so', 'thus'])} {int(left) + int(right)}"


def ask(
    renderer: TemplateRenderer, text: str, *, forced: IntArray = EMPTY_IDS, seed: int = 1, name: str = "r"
) -> GenerateRequest:
    conversation = renderer.open([Message("user", text)])
    prompt = renderer.extend(conversation).ids
    return GenerateRequest(name, "policy", (prompt,), Sampling(max_tokens=40, stop_ids=renderer.stop_ids), seed, forced)


async def test_script_reads_text_and_its_reply_comes_as_ids_with_the_stop_id(renderer: TemplateRenderer) -> None:
    async with Scripted(sums, renderer=renderer) as engine:
        request = ask(renderer, "17+25")
        reply = await engine.generate(request)
    assert renderer.decode(reply.ids[:-1]).endswith(" 42")
    assert reply.ids[-1] == renderer.stop_ids[0] == reply.matched and reply.finish == "stop"
    assert np.isnan(reply.logprobs).all() and reply.digest == digest_ids(request.prompt, reply.ids)


async def test_seed_alone_decides_what_is_drawn(renderer: TemplateRenderer) -> None:
    async with Scripted(sums, renderer=renderer) as engine:
        replies = {
            seed: [(await engine.generate(ask(renderer, "1+2", seed=seed))).ids.tobytes() for _ in range(2)]
            for seed in range(20)
        }
    assert all(first == second for first, second in replies.values())
    assert len({first for first, _ in replies.values()}) == 3


async def test_forced_prefix_of_the_reply_is_part_of_it_and_another_is_gone_on_from(renderer: TemplateRenderer) -> None:
    async with Scripted(sums, renderer=renderer) as engine:
        whole = (await engine.generate(ask(renderer, "1+2"))).ids
        again = (await engine.generate(ask(renderer, "1+2", forced=whole[:3]))).ids
        other = (await engine.generate(ask(renderer, "1+2", forced=renderer.encode("hm")))).ids
    assert np.array_equal(again, whole)
    assert renderer.decode(other[:-1]) == "hm!"


async def test_error_of_the_script_is_the_engines_with_its_cause(renderer: TemplateRenderer) -> None:
    async with Scripted(sums, renderer=renderer) as engine:
        with pytest.raises(EngineError, match=r"request 'r': the script raised: ValueError") as caught:
            await engine.generate(ask(renderer, "no sum+"))
    assert isinstance(caught.value.__cause__, ValueError)


async def test_publish_moves_the_version_on(renderer: TemplateRenderer) -> None:
    version = Version("run", "policy", 3, "ab")
    async with Scripted(sums, renderer=renderer) as engine:
        await engine.publish("policy", {}, version)
        assert engine.version("policy") == version
        assert (await engine.generate(ask(renderer, "1+2"))).spans[0].version == version


async def test_script_holds_the_engine_contract(renderer: TemplateRenderer) -> None:
    def echo(prompt: str, rng: random.Random) -> str:
        return prompt[::-1][:30] + "".join(rng.choices("abcdef", k=40))

    def make() -> Scripted:
        return Scripted(echo, renderer=renderer, vocab_size=256, max_context=4096)

    assert len(await check_engine(make, weights=lambda n: {})) == 39


async def test_turn_costs_little_beside_the_script(renderer: TemplateRenderer) -> None:
    """Under 0.5 ms of CPU with tokenizer and digest, on any machine that runs the tests; benchmarks tell the figure."""
    request = ask(renderer, "17+25")
    async with Scripted(lambda prompt, rng: "forty-two", renderer=renderer) as engine:
        started = time.process_time()
        for _ in range(500):
            await engine.generate(request)
        assert (time.process_time() - started) / 500 < 0.5e-3


async def test_request_that_waits_at_a_paused_script_can_be_aborted(renderer: TemplateRenderer) -> None:
    async with Scripted(sums, renderer=renderer) as engine, asyncio.TaskGroup() as group:
        await engine.pause()
        tasks = [group.create_task(engine.generate(ask(renderer, "1+2", name=name))) for name in ("a", "b")]
        await asyncio.sleep(0)
        await engine.abort("a")
        await engine.resume()
    assert [task.result().finish for task in tasks] == ["abort", "stop"]
    assert token_ids(tasks[0].result().ids).size == 0
