"""What may be wrong with this machine, this installation, a model or a run; each finding says what to do.

`diagnose` looks and changes nothing. It tries what can be tried: the local engine's self-test on a throwaway model (or the
given one), the chat template step by step, the store by reading all of it, a running server by asking it for a few replies.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import os
import platform
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agentrl.errors import UserError, capture, describe

DISTRIBUTION = "agentrl-runtime"
NAMESAKE = "agentrl"
"""Another project's distribution on PyPI (0.0.18, of 2022): its package `AgentRL` is our folder where case does not count."""
EXTRAS: Mapping[str, Mapping[str, str]] = {
    "rendering": {"tokenizers": "0.20", "jinja2": "3.1.6"},
    "local": {"torch": "2.6", "safetensors": "0.4"},
    "sglang": {"httptools": "0.6", "orjson": "3.10"},
    "vllm": {"httptools": "0.6", "orjson": "3.10"},
    "openai": {"httptools": "0.6", "orjson": "3.10"},
    "charts": {"matplotlib": "3.8", "rich": "13", "tensorboardX": "2.6"},
}
"""What each extra needs at least, as pyproject.toml has it; `local`, `sglang` and `vllm` need `rendering` besides."""

Level = Literal["ok", "note", "warning", "problem"]
_SIGNS: Mapping[Level, str] = {"ok": "ok", "note": "--", "warning": "!!", "problem": "NO"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `do` is what to do about it."""

    level: Level
    subject: str
    text: str
    do: str = ""

    def __str__(self) -> str:
        lines = self.text.split("\n")
        head = f"{_SIGNS[self.level]:>2}  {self.subject:<13} {lines[0]}"
        return "\n".join([head, *(f"{'':18}{line}" for line in (*lines[1:], *([f"do: {self.do}"] if self.do else [])))])


@dataclass(frozen=True, slots=True)
class Report:
    """All findings. `ok` says that none is a problem; `str` gives the lines a person reads."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return all(finding.level != "problem" for finding in self.findings)

    def __str__(self) -> str:
        return "\n".join(map(str, self.findings))


def diagnose(model: str | Path | None = None, *, run: str | Path | None = None, engine: str | None = None) -> Report:
    """Looks at the machine and the installation, and at a model folder and a run if they are given. Never raises for them.

    With `engine`, the URL of a running SGLang or vLLM server, that one is tried on the model instead of the local engine.
    """
    parts: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("python", _python),
        ("installation", lambda: _distributions(_installed())),
        ("extras", lambda: _extras(EXTRAS)),
        ("threads", _threads),
        ("sandbox", _sandboxes),
    ]
    if importlib.util.find_spec("torch") is not None:
        parts += [("torch", _torch)] + ([("local engine", lambda: _engine(model))] if engine is None else [])
    if model is not None:
        parts.append(("template", lambda: _template(Path(model))))
    if engine is not None:
        parts.append(("server", lambda: _server(engine, model)))
    if run is not None:
        parts.append(("run", lambda: _run(Path(run))))
    findings: list[Finding] = []
    for subject, look in parts:
        with capture() as caught:
            findings.extend(look())
        if caught.error is not None:
            findings.append(Finding("problem", subject, describe(caught.error)))
    return Report(tuple(findings))


# --- the installation ------------------------------------------------------------------------------------------------------
def _python() -> Iterator[Finding]:
    text = f"{platform.python_version()} ({platform.python_implementation()}) on {platform.system()} {platform.machine()}"
    yield Finding("ok", "python", text)


def _installed() -> dict[str, str]:
    """Versions of the two distributions that could be meant, by normalised name."""
    found: dict[str, str] = {}
    for name in (DISTRIBUTION, NAMESAKE):
        with capture():
            found[name] = importlib.metadata.version(name)
    return found


def _distributions(installed: Mapping[str, str]) -> Iterator[Finding]:
    here = Path(__file__).parent
    if DISTRIBUTION in installed:
        yield Finding("ok", "installation", f"{DISTRIBUTION} {installed[DISTRIBUTION]}, imported from {here}")
    else:
        yield Finding("note", "installation", f"from source at {here}; the distribution {DISTRIBUTION} is not installed")
    if NAMESAKE in installed:
        yield Finding(
            "problem",
            "installation",
            f"the distribution `{NAMESAKE}` {installed[NAMESAKE]} is installed too, another project with our name",
            f"pip uninstall -y {NAMESAKE} && pip install --force-reinstall --no-deps {DISTRIBUTION}",
        )


def _extras(extras: Mapping[str, Mapping[str, str]]) -> Iterator[Finding]:
    for extra, packages in extras.items():
        present: list[str] = []
        wrong: list[str] = []
        for package, least in packages.items():
            version = ""
            with capture():
                version = importlib.metadata.version(package)
            if not version:
                wrong.append(f"{package} is missing")
            elif _numbers(version) < _numbers(least):
                wrong.append(f"{package} {version} is older than {least}")
            else:
                present.append(f"{package} {version}")
        if wrong:
            text = ", ".join(wrong) + (f" (there are {', '.join(present)})" if present else "")
            yield Finding("note", f"extra {extra}", text, f'pip install "{DISTRIBUTION}[{extra}]"')
        else:
            yield Finding("ok", f"extra {extra}", ", ".join(present))


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


# --- the machine -----------------------------------------------------------------------------------------------------------
def _threads() -> Iterator[Finding]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    text = f"{usable} cores usable of {os.cpu_count()}; OMP_NUM_THREADS {asked or 'unset'}"
    if asked.isdigit() and int(asked) > usable:
        yield Finding("warning", "threads", text, f"threads that share a core wait for each other: OMP_NUM_THREADS={usable}")
    else:
        yield Finding("ok", "threads", text)


def _sandboxes() -> Iterator[Finding]:
    """Each that is installed is opened: what stands between its code and this machine, or why it does not start here."""
    from agentrl.resolve import Offered

    async def isolation(spec: Any) -> str:
        async with spec.open() as backend:
            return backend.isolation

    for name, made_by in Offered("agentrl.sandboxes").items():
        with capture() as caught:
            yield Finding(
                "ok", "sandbox", f"{name}: {asyncio.run(isolation(made_by() if isinstance(made_by, type) else made_by))}"
            )
        if isinstance(caught.error, UserError):
            yield Finding("note", "sandbox", f"{name}: {caught.error}")
        elif caught.error is not None:
            yield Finding("problem", "sandbox", f"{name}: {describe(caught.error)}")


def _torch() -> Iterator[Finding]:
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    libraries = {"mkl": torch.backends.mkl, "oneDNN": torch.backends.mkldnn}
    there = " and ".join(name for name, library in libraries.items() if library.is_available()) or "neither mkl nor oneDNN"
    text = f"{torch.__version__}, {torch.get_num_threads()} threads, {capability}, {there}"
    if capability == "DEFAULT" and platform.machine().lower() in ("x86_64", "amd64"):
        yield Finding("warning", "torch", text, "this CPU or this build has no AVX2; the local engine will be slow")
    else:
        yield Finding("ok", "torch", text)
    if torch.get_float32_matmul_precision() != "highest":
        precision = torch.get_float32_matmul_precision()
        yield Finding("warning", "torch", f"float32 products are {precision}", "torch.set_float32_matmul_precision('highest')")
    if torch.version.cuda and not torch.cuda.is_available():
        yield Finding("note", "torch", f"built for CUDA {torch.version.cuda}, and there is no GPU; a CPU build is much smaller")


def _engine(model: str | Path | None) -> Iterator[Finding]:
    """Opening the engine runs its self-test, which finds the shapes whose bits agree."""
    from agentrl.engines.local import LocalEngine

    async def is_exact(folder: Path) -> bool:
        async with LocalEngine(folder, slots=8) as engine:
            return engine.info.offers.deterministic

    with tempfile.TemporaryDirectory() as draft:
        folder = Path(model) if model is not None else _throwaway_model(Path(draft))
        exact = asyncio.run(is_exact(folder))
    tried = f"with {model}" if model is not None else "with a throwaway model"
    if exact:
        yield Finding("ok", "local engine", f"self-test {tried}: a request's bits depend on weights, ids and seed alone")
    else:
        yield Finding(
            "warning",
            "local engine",
            f"self-test {tried}: bits depend on the batch; runs are not reproducible to the bit",
            "try another number of threads (OMP_NUM_THREADS=1)",
        )


def _throwaway_model(folder: Path) -> Path:
    from agentrl.transformer.config import ModelConfig
    from agentrl.transformer.weights import init_weights, save_weights

    described = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": 256,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 128,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    }
    config = ModelConfig.from_json(described)
    save_weights(folder, config, init_weights(config, 0))
    return folder


# --- a model, a run --------------------------------------------------------------------------------------------------------
def _template(model: Path) -> Iterator[Finding]:
    from agentrl.rendering.token_check import check_template

    report = check_template(model)
    if report.warnings:
        yield Finding("warning", "template", str(report))
    elif not report.append_only:
        text = str(report)
        yield Finding(
            "note", "template", text, "nothing, if Policy(history='append'); 'faithful' follows the template and is slower"
        )
    else:
        yield Finding("ok", "template", str(report))


def _server(url: str, model: str | Path | None) -> Iterator[Finding]:
    if model is None:
        yield Finding(
            "problem", "server", f"{url} was not asked: nothing to compare it with", "give the model folder it serves"
        )
        return
    from agentrl.parity import check_parity

    found = check_parity(url, Path(model))
    info, offers = found.info, found.info.offers
    seeds = "seeds are heeded" if offers.deterministic else "seeds are not heeded, so a resumed run samples other replies"
    text = f"{info.name} at {url}: vocabulary of {info.vocab_size}, context of {info.max_context}; {seeds}"
    yield Finding("ok", "server", text)
    if found.drifted:
        text = f"in {found.drifted} of {found.replies} replies it saw other token ids than it was sent and gave back"
        yield Finding("problem", "drift", text, "nothing between agentrl and the server may change requests; ask it directly")
    else:
        yield Finding("ok", "drift", f"it saw the ids it was sent in every one of {found.replies} replies")
    gap = f"log-probs of {found.tokens} sampled tokens are {found.gap_mean:.2g} apart on average, at most {found.gap_max:.2g}"
    if found.verdict == "float32":
        yield Finding("ok", "parity", f"{gap}: rounding of float32")
    elif found.verdict == "bf16":
        text = f"{gap}: what bfloat16 gives, the learner being float32"
        yield Finding("note", "parity", text, "nothing, or a correction: Clipped(correction=Truncated(2.0)), docs/learning.md")
    else:
        text = f"{gap}: it serves other weights than {model}, or scores them otherwise"
        yield Finding(
            "problem", "parity", text, f"start it with {model}; no quantisation, and log-probs of softmax(logits / T)"
        )


def _run(run: Path) -> Iterator[Finding]:
    from agentrl.metrics import read_metrics
    from agentrl.store.sqlite import SQLiteStore

    if not (run / "experiment.json").is_file():
        yield Finding("problem", "run", f"{run} has no experiment.json", "give the --out folder of a training")
        return
    with SQLiteStore(run / "store.db", read_only=True) as store:
        wrong = store.check()
        counts = {status: count for status, count in store.counts().items() if count}
    told = ", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "no episodes"
    if wrong:
        text = "\n".join([f"the store is damaged ({told}):", *wrong[:5]])
        yield Finding(
            "problem", "store", text, "copy the folder, then `sqlite3 store.db .recover`, or go back to a copy of yours"
        )
    else:
        yield Finding("ok", "store", f"sound; {told}")
    if counts.keys() & {"running"}:
        yield Finding(
            "note", "store", f"{counts['running']} episodes have not ended: live now, or suspended until the run goes on"
        )
    yield from _checkpoints(run)
    if (run / "metrics.jsonl").is_file():
        steps = read_metrics(run / "metrics.jsonl")
        yield Finding("ok", "metrics", f"{len(steps)} steps" + (f", the last is {steps[-1].step}" if steps else ""))


def _checkpoints(run: Path) -> Iterator[Finding]:
    """All of each policy's newest one is read, for a checkpoint carries digests of its files."""
    policies = sorted(folder for folder in run.glob("checkpoints/*") if any(folder.glob("step-*[0-9]")))
    if not policies:
        yield Finding("note", "checkpoints", "none yet; an interrupted run goes on from its recorded batches")
    elif importlib.util.find_spec("torch") is None:
        yield Finding("note", "checkpoints", f"those of {len(policies)} policies are not read: torch is missing")
    else:
        from agentrl.learning.checkpoint import load

        for policy in policies:
            saved = sorted(policy.glob("step-*[0-9]"))
            loaded: Any = None
            with capture() as caught:
                loaded = load(saved[-1])
            if caught.error is not None:
                yield Finding("problem", "checkpoints", describe(caught.error))
            else:
                yield Finding("ok", "checkpoints", f"{policy.name}: {len(saved)}, the newest is whole ({loaded.version})")
