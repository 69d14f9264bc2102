"""Probes of an episode that has ended: each question scored, each answer an effect behind the episode's own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from agentrl.effect import Effect, EffectKey, digest_request
from agentrl.engines.contract import Engine, ScoreRequest, Scores
from agentrl.episode import Episode, digest_ids
from agentrl.errors import EngineError
from agentrl.probes.contract import Probe, Question
from agentrl.rendering.contract import Renderer
from agentrl.runtime.record import PROBED

logger = logging.getLogger(__name__)


async def probe(
    episode: Episode, task: Any, probes: Sequence[Probe], engine: Engine, renderers: Mapping[str, Renderer], first: int
) -> list[Effect]:
    """The effects that say what the probes found, numbered from `first`.

    A turn that has a probe of a name is not asked again, so that a resumed episode is probed once. What the engine cannot
    score, such as a path that is too long with the answer behind it, is left out: the turn then has no such probe.
    """
    asked = [
        (each, question)
        for each in probes
        for question in each(task, episode, renderers)
        if all(known.name != each.name for known in question.turn.probes)
    ]
    async with asyncio.TaskGroup() as tasks:
        scored = [
            tasks.create_task(_score(engine, question, f"{episode.id}|probe:{number}"))
            for number, (_, question) in enumerate(asked)
        ]
    found = ((each, question, task.result()) for (each, question), task in zip(asked, scored, strict=True))
    return [
        _effect(each, question, scores, first + number, episode.seconds)
        for number, (each, question, scores) in enumerate(found)
        if scores is not None
    ]


async def _score(engine: Engine, question: Question, name: str) -> Scores | None:
    try:
        return await engine.score(ScoreRequest(name, question.turn.policy, question.ids, question.start))
    except EngineError as error:
        logger.warning("turn %s has no probe: %s", question.turn.id, error)
        return None


def _effect(probe: Probe, question: Question, scores: Scores, number: int, at: float) -> Effect:
    value = {
        "turn": question.turn.id,
        "probe": probe.name,
        "position": question.start,
        "ids": question.ids[question.start :].tolist(),
        "logprobs": [float(logprob) for logprob in scores.logprobs],
        "version": str(scores.version),
        "value": probe.value(scores.logprobs),
    }
    request = digest_request(probe.name, question.turn.id, digest_ids(question.ids), question.start)
    note = f"{probe.name} at turn {question.turn.id}"
    return Effect(EffectKey(PROBED, 0, number), "score", probe.name, request, note, number, number, at, value=value)
