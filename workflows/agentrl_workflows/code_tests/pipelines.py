"""Small programs told by two examples: one or two stages over a list of four digits, each a line of Python.

    a = [3, 8, 5, 1]
    b = [2, 9, 9, 4]                     def f(x):
    f(a) == 8                                x = max(x)
    f(b) == 9                                return x

Two examples leave several programs possible; hidden tests on other lists tell the right one. Everything is a function of its
seed. Held-out problems have example lists that no training problem has (a fifth of all lists, by a hash).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

from agentrl.effect import derive_seed
from agentrl.errors import UserError
from agentrl_workflows.code_tests.problems import Problem

T = TypeVar("T")

LISTS = (
    "sorted(x)",
    "x[::-1]",
    "x[1:]",
    "x[:-1]",
    "[v for v in x if v % 2 == 0]",
    "[v for v in x if v % 2 == 1]",
    "[v + 1 for v in x]",
    "[v * 2 for v in x]",
)
"""Stages that make a list of a list."""
NUMBERS = ("sum(x)", "max(x)", "min(x)", "len(x)", "x[0]", "x[-1]")
"""Stages that make a number of a list; only the last stage can be one."""
HEAD, END = "def f(x):\n", "    return x"
SHOW = "\nf(a), f(b)"
"""What a program is tried with; the session knows `a` and `b`."""
LENGTH, DIGITS = 4, 10
HIDDEN = 8
"""Hidden tests of a problem."""
HELD_OUT_SHARE = 5

Program = tuple[str, ...]


def programs(stages: int, *, number: bool) -> tuple[Program, ...]:
    """All programs of so many stages that give a number, or a list."""
    last = NUMBERS if number else LISTS
    if stages == 1:
        return tuple((stage,) for stage in last)
    return tuple((*first, stage) for first in programs(stages - 1, number=False) for stage in last)


def source(program: Program) -> str:
    """The program as Python."""
    return HEAD + "".join(f"    x = {stage}\n" for stage in program) + END


@cache
def _stage(text: str) -> Callable[[list[int]], Any]:
    return eval(f"lambda x: {text}")  # one of the fourteen lines above


def outcome(program: Program, given: Sequence[int]) -> Any:
    """What the program makes of a list; None where it raises."""
    value: Any = list(given)
    try:
        for stage in program:
            value = _stage(stage)(value)
    except (IndexError, TypeError, ValueError):
        return None
    return value


def train_problems(count: int, *, stages: Sequence[int] = (1, 2), seed: int = 0) -> list[Problem]:
    """`count` problems that take turns in their number of stages."""
    return _problems(count, stages, "train", seed, held_out=False)


def held_out_problems(count: int, *, stages: Sequence[int] = (1, 2), seed: int = 0) -> list[Problem]:
    """`count` problems over held-out lists."""
    return _problems(count, stages, "held out", seed, held_out=True)


def _problems(count: int, stages: Sequence[int], split: str, seed: int, *, held_out: bool) -> list[Problem]:
    if count < 1 or not stages or not 1 <= min(stages) <= max(stages) <= 3:
        raise UserError(f"ask for at least one problem of 1 to 3 stages, got count={count}, stages={tuple(stages)}")
    rng = random.Random(derive_seed("code_tests", split, seed))
    return [_draw(rng, stages[at % len(stages)], held_out=held_out) for at in range(count)]


def _draw(rng: random.Random, stages: int, *, held_out: bool) -> Problem:
    """Draws again until both examples have a value that no program of fewer stages explains, and that differ."""
    while True:
        program = _pick(rng, programs(stages, number=rng.random() < 0.5))
        a, b = (_list(rng, held_out=held_out) for _ in "ab")
        shown = outcome(program, a), outcome(program, b)
        if None in shown or shown[0] == shown[1] or [] in shown or _simpler(program, (a, b), shown):
            continue
        hidden = [
            given for given in (_list(rng, held_out=True) for _ in range(3 * HIDDEN)) if outcome(program, given) is not None
        ]
        hidden = hidden[:HIDDEN]
        setup = f"a = {a}\nb = {b}"
        return Problem(
            text=f"{setup}\nf(a) == {shown[0]}\nf(b) == {shown[1]}",
            setup=setup,
            calls=tuple(f"f({given})" for given in hidden),
            expected=tuple(repr(outcome(program, given)) for given in hidden),
            entry="f",
            kind=f"{stages} stage" + "s" * (stages > 1),
        )


def _simpler(program: Program, examples: Sequence[list[int]], shown: tuple[Any, ...]) -> bool:
    number = program[-1] in NUMBERS
    fewer = (other for stages in range(1, len(program)) for other in programs(stages, number=number))
    same = examples[0] == shown[0] and examples[1] == shown[1]
    return same or any(tuple(outcome(other, given) for given in examples) == shown for other in fewer)


def _list(rng: random.Random, *, held_out: bool) -> list[int]:
    while True:
        found = [int(rng.random() * DIGITS) for _ in range(LENGTH)]
        if (derive_seed("code_tests list", *found) % HELD_OUT_SHARE == 0) == held_out:
            return found


def _pick(rng: random.Random, values: Sequence[T]) -> T:
    return values[int(rng.random() * len(values))]
