"""A scripted policy for the pipelines: it tries programs until one gives what the examples say, and answers with that.

It reads the prompt alone, as the model does. Each try is, with probability `skill`, a program that explains the examples, else
any of the right kind (a number or a list) that was not tried yet. After the last try it answers with that one, right or not.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Callable, Sequence

from agentrl.effect import derive_seed
from agentrl.errors import UserError
from agentrl.transformer.tiny import ASSISTANT, TOOL, USER
from agentrl_workflows.code_tests.model import CLOSE, OPEN
from agentrl_workflows.code_tests.pipelines import HEAD, SHOW, Program, outcome, programs, source

Demonstrator = Callable[[str, random.Random], str]
ASKED = re.compile(r"a = (.*)\nb = (.*)\nf\(a\) == (.*)\nf\(b\) == ([^<]*)")
TRIES = 4


def demonstrator(skill: float, *, stages: Sequence[int] = (1, 2), tries: int = TRIES) -> Demonstrator:
    """`demonstrate(prompt, rng)`; see the module."""
    if not 0 <= skill <= 1:
        raise UserError(f"skill is a probability, got {skill}")

    def demonstrate(prompt: str, rng: random.Random) -> str:
        asked, *turns = prompt.rpartition(USER)[2].split(ASSISTANT)
        examples = ASKED.match(asked)
        if examples is None:
            raise UserError(f"the demonstrator needs a prompt with two examples, got {asked[:80]!r}")
        a, b, *wanted = (ast.literal_eval(text) for text in examples.groups())
        tried = [turn.partition(OPEN)[2].partition(SHOW)[0] for turn in turns if OPEN in turn]
        if tried and (f"{TOOL}{tuple(wanted)}" in turns[len(tried) - 1] or len(tried) == tries):
            return tried[-1]
        fitting = [p for n in stages for p in programs(n, number=isinstance(wanted[0], int)) if source(p) not in tried]
        right = [program for program in fitting if [outcome(program, a), outcome(program, b)] == wanted]
        chosen = _pick(rng, right if right and rng.random() < skill else fitting)
        return f"{OPEN}{source(chosen)}{SHOW}{CLOSE}"

    return demonstrate


def teacher(skill: float, *, seed: int = 0) -> Demonstrator:
    """A fixed set of demonstrations: the same prompt always gets the same reply."""
    demonstrate = demonstrator(skill)
    return lambda prompt, rng: demonstrate(prompt, random.Random(derive_seed("code_tests demonstration", seed, prompt)))


def _pick(rng: random.Random, found: Sequence[Program]) -> Program:
    return found[int(rng.random() * len(found))]


assert HEAD.endswith("\n")
