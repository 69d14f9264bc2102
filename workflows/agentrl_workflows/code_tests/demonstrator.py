"""A scripted policy for the pipelines: in haste with a given probability; else right with a given skill.

It reads the prompt alone, as the model does. In haste it answers at once and guesses what every word means. Else, in each turn,
it does the right thing with probability `skill`, and any valid thing otherwise. The right thing is to look up the first word
whose meaning is not known yet; then to try the program; then to answer with it. Valid is to look up any word of the problem,
and to try, or to answer with, a program in which what is not known is guessed.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Callable

from agentrl.effect import derive_seed
from agentrl.errors import UserError
from agentrl.transformer.tiny import ASSISTANT, SPECIAL, TOOL, USER
from agentrl_workflows.code_tests.model import CLOSE, OPEN
from agentrl_workflows.code_tests.pipelines import READINGS, TRIAL, lookup, source

Demonstrator = Callable[[str, random.Random], str]


def demonstrator(skill: float, haste: float = 0.0) -> Demonstrator:
    """`demonstrate(prompt, rng)`; see the module."""
    if not 0 <= skill <= 1 or not 0 <= haste <= 1:
        raise UserError(f"skill and haste are probabilities, got skill={skill}, haste={haste}")

    def demonstrate(prompt: str, rng: random.Random) -> str:
        asked, *turns = prompt.rpartition(USER)[2].split(ASSISTANT)
        words = _until_special(asked).rpartition("\n")[2].split(", ")
        if not READINGS.keys() >= set(words):
            raise UserError(f"the demonstrator needs a prompt that ends with known words, got {asked[-80:]!r}")
        known = {word: ast.literal_eval(text) for word in words for turn in turns if (text := _shown(turn, lookup(word)))}
        guessed = source(tuple(known.get(word, READINGS[word][int(rng.random() * 2)]) for word in words))
        lookups = [f"{OPEN}{lookup(word)}{CLOSE}" for word in words]
        trial, unknown = f"{OPEN}{guessed}{TRIAL}{CLOSE}", [word for word in words if word not in known]
        if len(turns) == 1 and rng.random() < haste:
            return guessed
        if rng.random() >= skill:
            valid = [*dict.fromkeys(lookups), trial, guessed]
            return valid[int(rng.random() * len(valid))]
        if unknown:
            return f"{OPEN}{lookup(unknown[0])}{CLOSE}"
        return guessed if any(_shown(turn, guessed + TRIAL) for turn in turns) else trial

    return demonstrate


def teacher(skill: float, haste: float, *, seed: int = 0) -> Demonstrator:
    """A fixed set of demonstrations: the same prompt always gets the same reply."""
    demonstrate = demonstrator(skill, haste)
    return lambda prompt, rng: demonstrate(prompt, random.Random(derive_seed("code_tests demonstration", seed, prompt)))


def _shown(turn: str, code: str) -> str:
    """What this code gave in a turn; empty = it was not run there."""
    _, found, rest = turn.partition(f"{OPEN}{code}{CLOSE}")
    return _until_special(rest.partition(TOOL)[2]) if found else ""


def _until_special(text: str) -> str:
    for token in SPECIAL:
        text = text.partition(token)[0]
    return text
