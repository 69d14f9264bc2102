"""One agent over a scripted policy: a real tokenizer and template, a real journal, no weights."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from agentrl.agent import Agent, Reply
from agentrl.effect import Effect
from agentrl.engines.scripted import Scripted
from agentrl.episode import Episode, Sampling
from agentrl.rendering.template import TemplateRenderer
from agentrl.store.contract import EpisodeTail
from agentrl.store.fold import fold
from agentrl.team import Seat, Team
from tests.rendering.conftest import FAMILIES, TEMPLATES, write_folder
from tests.runtime.harness import HEAD, play

Respond = Callable[[str, random.Random], str]


@lru_cache
def renderer() -> TemplateRenderer:
    """ChatML with tools in Hermes' form, as Qwen 2.5 writes them."""
    template = (TEMPLATES / "qwen2_5.jinja").read_text("utf-8")
    with tempfile.TemporaryDirectory() as made:
        return TemplateRenderer.from_folder(write_folder(Path(made) / "qwen2_5", template, *FAMILIES["qwen2_5"]))


def call(name: str, **arguments: Any) -> str:
    """A tool call as the model writes it."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def script(*replies: str) -> Respond:
    """The n-th turn of a context gives the n-th reply, and the last one from then on."""

    def respond(prompt: str, rng: random.Random) -> str:
        return replies[min(prompt.count("<|im_start|>assistant") - 1, len(replies) - 1)]

    return respond


def seat(engine: Any, retries: int = 0) -> Seat:
    return Seat("policy", engine, renderer(), Sampling(stop_ids=renderer().stop_ids), retries)


class Played:
    """What came of one run of an agent."""

    def __init__(self, effects: Sequence[Effect], tail: EpisodeTail, replies: Sequence[Reply]) -> None:
        self.effects = effects
        self.tail = tail
        self.reply: Reply | None = replies[-1] if replies else None
        self.episode: Episode = fold(HEAD, effects, tail)

    @property
    def stop(self) -> str:
        """Why the agent's loop ended, as recorded."""
        ((_, reason),) = self.episode.stops
        return reason


async def ask(
    respond: Respond, message: str = "Go.", *, engine: Any = None, max_context: int = 1 << 20, retries: int = 0, **settings: Any
) -> Played:
    """Runs an agent once, then replays it: both must come to the same."""
    agent = replace(Agent("agent"), **settings)
    engine = engine or Scripted(respond, renderer=renderer(), max_context=max_context)
    replies: list[Reply] = []

    async def workflow(task: Any, team: Team) -> str:
        replies.append(await team["agent"].run(message))
        return replies[-1].text

    common: dict[str, Any] = {"agents": {"agent": agent}, "seats": {"agent": seat(engine, retries)}}
    effects, tail = await play(workflow, **common)
    again_effects, again = await play(workflow, effects, mode="replay", **common)
    assert (again.status, again.output, again.stops) == (tail.status, tail.output, tail.stops)
    assert len(again_effects) == len(effects)
    return Played(effects, tail, replies)
