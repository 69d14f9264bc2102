"""Engines as values: what an `Experiment` holds, opened when a runtime starts. Heavy imports happen then."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from agentrl.engines.contract import Engine
from agentrl.episode import Source
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
    """One running SGLang server. It serves one policy."""

    url: str = "http://127.0.0.1:30000"
    source: Source = "policy"

    def open(self, models: Mapping[str, Path], renderers: Mapping[str, Renderer], lineage: str) -> Engine:
        from agentrl.engines.sglang import SGLangEngine

        if len(models) != 1:
            raise UserError(f"one SGLang server serves one policy, got {', '.join(models)}")
        name, folder = next(iter(models.items()))
        config = folder / "config.json"  # the server does not tell its vocabulary, and its own path may not be ours
        vocab_size = json.loads(config.read_text())["vocab_size"] if config.is_file() else None
        return SGLangEngine(self.url, policy=name, vocab_size=vocab_size)


@dataclass(frozen=True, slots=True)
class Demonstrations:
    """A plain function in the place of a policy: prompt text and a generator in, reply text out. For warm starts."""

    respond: Callable[[str, Any], str]
    source: Source = "demonstration"

    def open(self, models: Mapping[str, Path], renderers: Mapping[str, Renderer], lineage: str) -> Engine:
        from agentrl.engines.scripted import Scripted

        name = next(iter(models))
        return Scripted(self.respond, renderer=renderers[name], policy=name)
