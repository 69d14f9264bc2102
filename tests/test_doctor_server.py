"""What the doctor says of a running server: one that serves our model behind SGLang's wire, and ones that do not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from agentrl.cli import main
from agentrl.doctor import Finding, Report, diagnose
from agentrl.engines.contract import EngineInfo, GenerateRequest, Generation, Offers
from agentrl.engines.local import LocalEngine
from agentrl.engines.sglang.fake import FakeSGLang
from agentrl.engines.vllm.fake import FakeVLLM
from agentrl.parity import Parity, find_kind
from agentrl.transformer.weights import load_weights
from agentrl_workflows.search_qa.model import make_model

SMALL = {"hidden": 32, "layers": 1, "heads": 2, "head_dim": 16, "ff": 32}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny", **SMALL)


class Serving(FakeSGLang):
    """SGLang's wire before an engine, described as the server of the folder would."""

    def __init__(self, engine: Any, folder: Path, **changes: Any) -> None:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        super().__init__(
            engine,
            context=1024,
            model_path=str(folder),
            encode=lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
            **changes,
        )
        self._config = json.loads((folder / "config.json").read_text())

    async def _model_info(self, request: web.Request) -> web.Response:
        said = json.loads((await super()._model_info(request)).text or "")
        return web.json_response(said | {name: self._config[name] for name in ("architectures", "model_type")})


@asynccontextmanager
async def serving(engine: Any, folder: Path, **changes: Any) -> AsyncIterator[FakeSGLang]:
    async with engine, Serving(engine, folder, **changes) as fake:
        yield fake


async def told(model: Path, url: str) -> dict[str, Finding]:
    report: Report = await asyncio.to_thread(diagnose, model, engine=url)
    assert not [finding for finding in report.findings if finding.subject == "local engine"], "something was started"
    return {finding.subject: finding for finding in report.findings}


async def test_a_server_with_our_model_is_sound(model: Path) -> None:
    async with serving(LocalEngine(model, slots=8), model) as fake:
        found = await told(model, fake.url)
    assert found["server"].level == found["drift"].level == found["parity"].level == "ok"
    assert "sglang 0.5.23" in found["server"].text.lower() and "vocabulary of" in found["server"].text
    assert "every one of 4 replies" in found["drift"].text
    assert "rounding of float32" in found["parity"].text


class Rounded(LocalEngine):
    """Log-probs as they come from arithmetic in bfloat16: off by some hundredths."""

    async def generate(self, request: GenerateRequest) -> Generation:
        generation = await super().generate(request)
        noise = np.random.default_rng(request.seed).normal(0, 0.01, len(generation.ids)).astype(np.float32)
        return replace(generation, logprobs=generation.logprobs + noise)


async def test_a_gap_of_bf16_is_told_as_such(model: Path) -> None:
    async with serving(Rounded(model, slots=8), model) as fake:
        found = await told(model, fake.url)
    assert found["parity"].level == "note"
    assert "bfloat16" in found["parity"].text and "Truncated(2.0)" in found["parity"].do


async def test_other_weights_of_the_same_shape_are_a_problem(model: Path) -> None:
    weights = {name: tensor * 3 if "proj" in name else tensor for name, tensor in load_weights(model).items()}
    async with serving(LocalEngine(model, slots=8), model) as fake:
        engine: Any = fake.scheduler.served.engine  # type: ignore[attr-defined]
        await engine.publish("policy", weights, engine.version("policy"))
        found = await told(model, fake.url)
    assert found["parity"].level == "problem"
    assert "other weights" in found["parity"].text and str(model) in found["parity"].do


async def test_a_server_of_another_architecture_or_tokenizer_is_named(model: Path) -> None:
    async with FakeSGLang() as fake:  # serves the toy model
        found = await told(model, fake.url)
    assert (
        found["server"].level == "problem"
        and "serves another model: its architectures is ToyForCausalLM" in found["server"].text
    )
    assert "parity" not in found
    engine = LocalEngine(model, slots=8)
    async with engine, Serving(engine, model) as fake:
        fake._encode = lambda text: [ord(letter) % 50 for letter in text]
        found = await told(model, fake.url)
    assert found["server"].level == "problem" and "has another tokenizer" in found["server"].text


async def test_sglang_and_vllm_are_told_apart_by_their_routes() -> None:
    async with FakeSGLang() as sglang, FakeVLLM() as vllm:
        assert [await find_kind(sglang.url), await find_kind(vllm.url)] == ["sglang", "vllm"]


async def test_wrong_urls_are_told_apart(model: Path) -> None:
    runner = web.AppRunner(web.Application())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        assert site._server is not None
        port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        strange = await told(model, f"http://127.0.0.1:{port}")
    finally:
        await runner.cleanup()
    assert strange["server"].level == "problem"
    assert "is neither SGLang nor vLLM" in strange["server"].text
    gone = await told(model, f"http://127.0.0.1:{port}")
    assert gone["server"].level == "problem" and f"127.0.0.1:{port}" in gone["server"].text
    bare = await told(model, f"127.0.0.1:{port}")
    assert "begins with http:// or https://" in bare["server"].text


async def test_a_server_of_an_unknown_version_is_refused(model: Path) -> None:
    async with serving(LocalEngine(model, slots=8), model, version="0.9.99") as fake:
        found = await told(model, fake.url)
    assert found["server"].level == "problem" and "0.9.99" in found["server"].text


def test_a_server_that_saw_other_ids_is_a_problem(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = EngineInfo("sglang", 320, 1024, Offers())
    monkeypatch.setattr("agentrl.parity.check_parity", lambda url, folder: Parity(info, 4, 128, 2, 1e-6, 1e-5))
    found = {finding.subject: finding for finding in diagnose(model, engine="http://127.0.0.1:9").findings}
    assert found["drift"].level == "problem" and "in 2 of 4 replies" in found["drift"].text


class Silent(LocalEngine):
    """Gives no log-prob for the first token."""

    async def generate(self, request: GenerateRequest) -> Generation:
        generation = await super().generate(request)
        logprobs = generation.logprobs.copy()
        logprobs[0] = np.nan
        return replace(generation, logprobs=logprobs)


async def test_log_probs_that_are_missing_are_no_gap(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentrl.engines.sglang.SGLangEngine", lambda url, **more: Silent(model, slots=8))
    async with FakeSGLang() as fake:
        found = await told(model, fake.url)
    assert found["server"].level == "problem" and "gave no log-probs for 4 of" in found["server"].text


def test_a_server_without_a_model_to_compare_is_not_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--engine", "http://127.0.0.1:9"]) == 1
    assert "give the model folder it serves" in capsys.readouterr().out


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    found = {finding.subject: finding for finding in diagnose(tmp_path, engine="http://127.0.0.1:9").findings}
    assert "no config.json" in found["server"].text
