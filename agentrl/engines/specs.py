"""Engines as values: what an `Experiment` holds, opened when a runtime starts. Heavy imports happen then."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from agentrl.engines.contract import Engine
from agentrl.episode import EMPTY_MAP, Source
from agentrl.errors import UserError
from agentrl.rendering.contract import Renderer


class EngineSpec(Protocol):
    """An engine that is not open yet."""

    @property
    def source(self) -> Source:
        """What episodes sampled from it are."""
        ...

    def open(self, models: Mapping[str, Path], renderers: Mapping[str, Renderer], lineage: str) -> Engine:
        """The engine, to be entered by the caller; `models` by policy name."""
        ...


@runtime_checkable
class TakesMessages(Protocol):
    """A spec of which some policies' engine takes messages and keeps its tokenizer to itself."""

    def renderer(self, policy: str) -> Renderer | None:
        """The renderer that the policy's engine reads; None = that of its model folder."""
        ...


def own_renderer(spec: EngineSpec, policy: str) -> Renderer | None:
    """The renderer that a policy's engine brings along; None = its model folder has it, and it gives token ids."""
    return spec.renderer(policy) if isinstance(spec, TakesMessages) else None


@dataclass(frozen=True, slots=True)
class Local:
    """The embedded torch engine. Deterministic; needs the extra `local`."""

    slots: int = 64
    threads: int | None = None
    prefix_cache_tokens: int = 65_536
    source: Source = "policy"

    def open(self, models: Mapping[str, Path], renderers: Mapping[str, Renderer], lineage: str) -> Engine:
        try:
            from agentrl.engines.local import LocalEngine
        except ModuleNotFoundError as error:
            raise UserError(f'the local engine needs {error.name}; pip install "agentrl-runtime[local]"') from error
        return LocalEngine(
            models,
            slots=self.slots,
            threads=self.threads,
            prefix_cache_tokens=self.prefix_cache_tokens,
            lineage=lineage,
        )


@dataclass(frozen=True, slots=True)
class SGLang:
    """One running SGLang server, at `url`, or several behind SGLang's own router: those at `urls`, or `launch` new ones.

    It serves one policy; a server alone, with `adapters`, several, each as a LoRA adapter of the server's model.

    `weights` says how new tensors reach it: "tensors" over HTTP, "disk" through a folder below `exchange` that both see
    (empty = a temporary one, for a server on this machine), "group" by NCCL or gloo, for which it must reach this machine by
    the name `host`; empty = "disk" for launched servers, else "tensors". `colocated` has it free its memory for each learner
    step on the same device (start it with --enable-memory-saver). `key_env` names the environment variable with the server's
    API key; empty = it wants none.

    Launched servers run with `python` (empty = what AGENTRL_SGLANG_PYTHON names, else our own), on `tp` of the `gpus` each
    ("0-3"; empty = on the CPU) and with `args` besides our own; their logs go to the folder `logs` (empty = that of the run,
    else a temporary one).
    """

    url: str = "http://127.0.0.1:30000"
    urls: tuple[str, ...] = ()
    launch: int = 0
    python: str = ""
    tp: int = 1
    gpus: str = ""
    args: tuple[str, ...] = ()
    logs: str = ""
    weights: Literal["", "tensors", "disk", "group"] = ""
    colocated: bool = False
    adapters: bool = False
    exchange: str = ""
    host: str = "127.0.0.1"
    key_env: str = ""
    source: Source = "policy"

    def open(self, models: Mapping[str, Path], renderers: Mapping[str, Renderer], lineage: str) -> Engine:
        from agentrl.engines.sglang import SGLangEngine

        if len(models) != 1 and not self.adapters:
            names = ", ".join(models)
            raise UserError(
                f"one SGLang server serves one policy, or several as adapters of its model; got {names}: give each a server of "
                "its own with Several, or set adapters=True"
            )
        if self.key_env and self.key_env not in os.environ:
            raise UserError(
                f"the key of {self.url} is to be in the environment variable {self.key_env}, which is not set; set it"
            )
        name, folder = next(iter(models.items()))
        key = os.environ[self.key_env] if self.key_env else ""
        if self.launch or self.urls:
            from agentrl.engines.fleet import open_fleet

            return open_fleet(self, name, folder)
        return SGLangEngine(
            self.url,
            policy="base" if self.adapters else name,
            adapters=tuple(models) if self.adapters else (),
            model=folder,
            weights=self.weights or "tensors",
            exchange=self.exchange or None,
            host=self.host,
            api_key=key,
        )


@dataclass(frozen=True, slots=True)
class VLLM:
    """One running vLLM server. It serves one policy.

    `exchange` is a folder that both see, for new weights; empty = a temporary one, for a server on this machine.
    """

    url: str = "http://127.0.0.1:8000"
    exchange: str = ""
    source: Source = "policy"

    def open(self, models: Mapping[str, Path], renderers: Mapping[str, Renderer], lineage: str) -> Engine:
        from agentrl.engines.vllm import VLLMEngine

        if len(models) != 1:
            raise UserError(f"one vLLM server serves one policy, got {', '.join(models)}; give each its own with Several")
        name, folder = next(iter(models.items()))
        return VLLMEngine(self.url, policy=name, model=folder, exchange=self.exchange or None)


@dataclass(frozen=True, slots=True)
class OpenAI:
    """Any endpoint of the chat completions API, for evaluation and frozen roles: its turns are never trained.

    `key_env` names the environment variable with the key; empty = none is sent. For the rest see `OpenAIEngine`.
    """

    model: str = ""
    url: str = "https://api.openai.com/v1"
    key_env: str = "OPENAI_API_KEY"
    limit: str = "max_tokens"
    extra: Mapping[str, Any] = EMPTY_MAP
    seconds: float = 600.0
    source: Source = "policy"

    def open(self, models: Mapping[str, Path], renderers: Mapping[str, Renderer], lineage: str) -> Engine:
        from agentrl.engines.openai import OpenAIEngine

        key = os.environ.get(self.key_env, "")
        if self.key_env and not key:
            raise UserError(
                f"the endpoint's key is to be in the environment variable {self.key_env}, which is not set; set it, or name "
                "another with key_env (empty = the endpoint wants none)"
            )
        return OpenAIEngine(
            self.url, self.model, policies=tuple(models), api_key=key, seconds=self.seconds, limit=self.limit, extra=self.extra
        )

    def renderer(self, policy: str) -> Renderer | None:
        from agentrl.rendering.chat import ChatRenderer

        return ChatRenderer()


@dataclass(frozen=True, slots=True)
class Several:
    """An engine for some policies by name, and one for the rest: `Several({"judge": OpenAI("gpt-4.1-mini")}, rest=Local())`."""

    named: Mapping[str, EngineSpec]
    rest: EngineSpec = field(default_factory=Local)

    @property
    def source(self) -> Source:
        return self.rest.source

    def open(self, models: Mapping[str, Path], renderers: Mapping[str, Renderer], lineage: str) -> Engine:
        from agentrl.engines.several import SeveralEngines

        if unknown := self.named.keys() - models.keys():
            raise UserError(f"Several names {', '.join(sorted(unknown))}; the experiment's policies are {', '.join(models)}")
        parts: list[tuple[EngineSpec, dict[str, Path]]] = []
        for name, folder in models.items():  # policies of equal specs share an engine
            spec = self.named.get(name, self.rest)
            shared = next((own for known, own in parts if known == spec), None)
            if shared is None:
                parts.append((spec, {name: folder}))
            else:
                shared[name] = folder
        engines = [(spec.open(own, renderers, lineage), tuple(own)) for spec, own in parts]
        return SeveralEngines({name: engine for engine, names in engines for name in names})

    def renderer(self, policy: str) -> Renderer | None:
        return own_renderer(self.named.get(policy, self.rest), policy)


@dataclass(frozen=True, slots=True)
class Demonstrations:
    """A plain function in the place of a policy: prompt text and a generator in, reply text out. For warm starts."""

    respond: Callable[[str, Any], str]
    source: Source = "demonstration"

    def open(self, models: Mapping[str, Path], renderers: Mapping[str, Renderer], lineage: str) -> Engine:
        from agentrl.engines.scripted import Scripted

        name = next(iter(models))
        return Scripted(self.respond, renderer=renderers[name], policy=name)
