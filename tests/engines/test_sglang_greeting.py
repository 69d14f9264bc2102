"""What is compared when an SGLang server is entered: its kind, its version, its model, its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from agentrl.engines.serving import Seconds
from agentrl.engines.sglang import KNOWN_VERSIONS, SGLangEngine
from agentrl.engines.sglang.fake import FakeSGLang
from agentrl.engines.specs import SGLang
from agentrl.errors import EngineError, UserError

TOY = {"architectures": ["ToyForCausalLM"], "model_type": "toy", "vocab_size": 320}


def tokenizer(*, merges: bool) -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [("t", "h"), ("th", "e")] if merges else []
    vocab = {token: at for at, token in enumerate([*letters, *("".join(pair) for pair in pairs)])}
    made = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    made.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return made


def folder(path: Path, config: dict[str, Any], made: Tokenizer | None = None) -> Path:
    (path / "config.json").write_text(json.dumps(config))
    if made is not None:
        made.save(str(path / "tokenizer.json"))
    return path


async def enter(url: str, **more: Any) -> int:
    async with SGLangEngine(url, seconds=Seconds(control=1.0, connect=1.0), **more) as engine:
        return engine.info.vocab_size


async def test_server_of_the_same_folder_is_taken(tmp_path: Path) -> None:
    made = tokenizer(merges=True)
    async with FakeSGLang(encode=lambda text: made.encode(text).ids) as fake:
        assert await enter(fake.url, model=folder(tmp_path, TOY, made)) == 320


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["Qwen3ForCausalLM"]}, "architectures is ToyForCausalLM .* is Qwen3ForCausalLM; start it with"),
        ({"model_type": "qwen3"}, "model_type is toy .* is qwen3"),
    ],
)
async def test_another_model_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    async with FakeSGLang() as fake:
        with pytest.raises(UserError, match=f"serves another model: its {message}"):
            await enter(fake.url, model=folder(tmp_path, TOY | change))


async def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    theirs = tokenizer(merges=False)
    async with FakeSGLang(encode=lambda text: theirs.encode(text).ids) as fake:
        with pytest.raises(UserError, match=r"has another tokenizer than .*it makes \[\d+.*\] at token \d+, the folder"):
            await enter(fake.url, model=folder(tmp_path, TOY, tokenizer(merges=True)))


@pytest.mark.parametrize("url", ["127.0.0.1:30000", "sglang", ""])
def test_url_without_a_scheme_is_refused(url: str) -> None:
    with pytest.raises(UserError, match=r"SGLang: the URL must begin with http:// or https:// and a host"):
        SGLangEngine(url)


async def test_server_of_another_kind_is_refused() -> None:
    runner = web.AppRunner(web.Application())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        with pytest.raises(UserError, match=r"answers, but not as SGLang does .*404.*give the URL of the server's own API"):
            await enter(f"http://127.0.0.1:{runner.addresses[0][1]}", vocab_size=320)
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("path", ["/server_info", "/model_info", "/v1/models"])
@pytest.mark.parametrize(
    ("kind", "message"), [("never", "had no answer within 1 s"), ("drip", "had no answer within 1 s"), ("garbage", "no JSON")]
)
async def test_server_that_does_not_answer_the_greeting_is_named_in_time(path: str, kind: Any, message: str) -> None:
    async with FakeSGLang() as fake:
        fake.fail(path, kind)
        with pytest.raises(EngineError, match=f"SGLang at {fake.url}: GET {path} .*{message}"):
            await enter(fake.url, vocab_size=320)


async def test_unknown_version_is_refused_with_what_to_do() -> None:
    async with FakeSGLang(version="0.4.9") as fake:
        with pytest.raises(UserError, match=r"version 0\.4\.9; known are 0\.5\.23.*known_versions"):
            await enter(fake.url, vocab_size=320)
        assert await enter(fake.url, vocab_size=320, known_versions=KNOWN_VERSIONS | {"0.4.9"}) == 320


async def test_spec_opens_one_policy_or_several_as_adapters(tmp_path: Path) -> None:
    model = folder(tmp_path, TOY)
    async with FakeSGLang(lora=True) as fake:
        async with SGLang(fake.url).open({"policy": model}, {}, "run") as engine:
            assert engine.info.vocab_size == 320 and engine.version("policy").step == 0
        with pytest.raises(UserError, match=r"serves one policy, or several as adapters of its model.*adapters=True"):
            SGLang(fake.url).open({"a": model, "b": model}, {}, "run")
        async with SGLang(fake.url, adapters=True).open({"a": model, "b": model}, {}, "run") as engine:
            assert engine.info.offers.adapters and engine.version("b").policy == "b"
