"""Probes of an episode that has ended: each question scored, each answer an effect behind the episode's own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from agentrl.effect import Effect, EffectKey, digest_request
from agentrl.engines.contract import Engine, ScoreRequest, Scores
from agentrl.episode import EMPTY_IDS, Episode, digest_ids
from agentrl.errors import EngineError
from agentrl.probes.contract import Gauge, Probe, Question
from agentrl.rendering.contract import Renderer
from agentrl.runtime.record import PROBED

logger = logging.getLogger(__name__)


async def probe(
    episode: Episode, task: Any, probes: Sequence[Probe | Gauge], engine: Engine, renderers: Mapping[str, Renderer], first: int
) -> list[Effect]:
    """The effects that say what probes and gauges found, numbered from `first`.

    A turn that has a probe of a name is not asked again, so that a resumed episode is probed once. What the engine cannot
    score, such as a path that is too long with the answer behind it, is left out: the turn then has no such probe.
    """
    asked = [
        (each, question)
        for each in probes
        if not isinstance(each, Gauge)
        for question in each(task, episode, renderers)
        if all(known.name != each.name for known in question.turn.probes)
    ]
    async with asyncio.TaskGroup() as tasks:
        scored = [
            tasks.create_task(_score(engine, question, f"{episode.id}|probe:{number}"))
            for number, (_, question) in enumerate(asked)
        ]
    answered = ((each, question, task.result()) for (each, question), task in zip(asked, scored, strict=True))
    found = [
        (each.name, question, scores, each.value(scores.logprobs)) for each, question, scores in answered if scores is not None
    ] + [
        (each.name, Question(turn, EMPTY_IDS, 0), None, value)
        for each in probes
        if isinstance(each, Gauge)
        for turn, value in each.measure(episode)
        if all(known.name != each.name for known in turn.probes)
    ]
    return [_effect(*each, number=first + n, at=episode.seconds) for n, each in enumerate(found)]


async def _score(engine: Engine, question: Question, name: str) -> Scores | None:
    try:
        return await engine.score(ScoreRequest(name, question.turn.policy, question.ids, question.start))
    except EngineError as error:
        logger.warning("turn %s has no probe: %s", question.turn.id, error)
        return None


def _effect(name: str, question: Question, scores: Scores | None, value: float, *, number: int, at: float) -> Effect:
    told = {
        "turn": question.turn.id,
        "probe": name,
        "position": question.start,
        "ids": question.ids[question.start :].tolist(),
        "logprobs": [float(logprob) for logprob in scores.logprobs] if scores is not None else [],
        "version": str(scores.version) if scores is not None else "",
        "value": value,
    }
    request = digest_request(name, question.turn.id, digest_ids(question.ids), question.start)
    note = f"{name} at turn {question.turn.id}"
    return Effect(EffectKey(PROBED, 0, number), "score", name, request, note, number, number, at, value=told)
