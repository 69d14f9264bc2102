"""A scripted policy for the pipelines: it tries programs until both examples come out right, and answers with that one.

It reads the prompt alone, as the model does. Each try is, with probability `skill`, a reading of the words that was not tried
yet, else any program of as many known lines. After the last try it answers with that one, right or not.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from agentrl.effect import derive_seed
from agentrl.errors import UserError
from agentrl.transformer.tiny import ASSISTANT, SPECIAL, TOOL, USER
from agentrl_workflows.code_tests.model import CLOSE, OPEN
from agentrl_workflows.code_tests.pipelines import READINGS, STAGES, TRIAL, readings, source

Demonstrator = Callable[[str, random.Random], str]
TRIES = 5
RIGHT = f"{TOOL}(True, True)"


def demonstrator(skill: float, *, tries: int = TRIES) -> Demonstrator:
    """`demonstrate(prompt, rng)`; see the module."""
    if not 0 <= skill <= 1:
        raise UserError(f"skill is a probability, got {skill}")

    def demonstrate(prompt: str, rng: random.Random) -> str:
        asked, *turns = prompt.rpartition(USER)[2].split(ASSISTANT)
        for token in SPECIAL:
            asked = asked.partition(token)[0]
        words = asked.rpartition("\n")[2].split(", ")
        if not READINGS.keys() >= set(words):
            raise UserError(f"the demonstrator needs a prompt that ends with known words, got {asked[-80:]!r}")
        tried = [turn.partition(OPEN)[2].partition(TRIAL)[0] for turn in turns if OPEN in turn]
        if tried and (RIGHT in prompt or len(tried) == tries):
            return tried[-1]
        left = [text for program in readings(words) if (text := source(program)) not in tried]
        if left and rng.random() < skill:
            chosen = left[int(rng.random() * len(left))]
        else:
            chosen = source(tuple(STAGES[int(rng.random() * len(STAGES))] for _ in words))
        return f"{OPEN}{chosen}{TRIAL}{CLOSE}"

    return demonstrate


def teacher(skill: float, *, seed: int = 0) -> Demonstrator:
    """A fixed set of demonstrations: the same prompt always gets the same reply."""
    demonstrate = demonstrator(skill)
    return lambda prompt, rng: demonstrate(prompt, random.Random(derive_seed("code_tests demonstration", seed, prompt)))
