"""Small programs told in words of a house style; what a word means in this project is in `notes`, in the agent's session.

    a, u = [3, 8, 5, 1], 5              >>> notes['the odd ones']      def f(x):
    the odd ones, the last              '[v for v in x if v % 2 == 1]'     x = [v for v in x if v % 2 == 1]
                                        >>> notes['the last']              x = max(x)
                                        'max(x)'                           return x

Each word has two readings; the notes of a problem say which one holds. A guess may fit the example; hidden tests on other lists
tell it from the right program. Everything is a function of its seed. Held-out problems have words in an order that no training
problem has (a fifth of all orders, by a hash), or, of one stage, example lists that none has.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache
from itertools import islice
from typing import Any, TypeVar

from agentrl.effect import derive_seed
from agentrl.errors import UserError
from agentrl_workflows.code_tests.problems import Problem

T = TypeVar("T")

LISTS = {
    "ordered": ("sorted(x)", "sorted(x, reverse=True)"),
    "shortened": ("x[1:]", "x[:-1]"),
    "the odd ones": ("[v for v in x if v % 2 == 1]", "x[::2]"),
    "the even ones": ("[v for v in x if v % 2 == 0]", "x[1::2]"),
    "doubled": ("[v * 2 for v in x]", "x + x"),
    "the large ones": ("[v for v in x if v > 4]", "[v for v in x if v > sum(x) / len(x)]"),
}
"""Words for a list made of a list, and the two things that they may mean."""
NUMBERS = {"the total": ("sum(x)", "len(x)"), "the first": ("x[0]", "min(x)"), "the last": ("x[-1]", "max(x)")}
"""Words for a number made of a list; only the last stage can be one."""
READINGS = {**LISTS, **NUMBERS}
STAGES = tuple(reading for readings in READINGS.values() for reading in readings)
HEAD, END = "def f(x):\n", "    return x"
TRIAL = "\nf(a) == u"
"""What a program is tried with; the session knows the example."""
LENGTH, DIGITS = 4, 10
HIDDEN = 5
"""Hidden tests of a problem."""
HELD_OUT_SHARE = 5
MOST = 3
FAILURES = (IndexError, TypeError, ValueError, ZeroDivisionError)
"""What a program can raise."""

Program = tuple[str, ...]


def source(program: Program) -> str:
    """The program as Python."""
    return HEAD + "".join(f"    x = {stage}\n" for stage in program) + END


def lookup(word: str) -> str:
    """The code that shows what a word means."""
    return f"notes[{word!r}]"


@cache
def _stage(text: str) -> Callable[[list[int]], Any]:
    return eval(f"lambda x: {text}")  # one of `STAGES`


def value(program: Program, given: Sequence[int]) -> Any:
    """What the program makes of a list; raises what it raises."""
    made: Any = list(given)
    for stage in program:
        made = _stage(stage)(made)
    return made


def outcome(program: Program, given: Sequence[int]) -> Any:
    """The same; None where it raises."""
    try:
        return value(program, given)
    except FAILURES:
        return None


def train_problems(count: int, *, stages: Sequence[int] = (1, 2, 3), seed: int = 0) -> list[Problem]:
    """`count` problems that take turns in their number of stages."""
    return list(_problems(count, tuple(stages), "train", seed))


def held_out_problems(count: int, *, stages: Sequence[int] = (1, 2, 3), seed: int = 0) -> list[Problem]:
    """`count` held-out problems."""
    return list(_problems(count, tuple(stages), "held out", seed))


@cache
def _problems(count: int, stages: tuple[int, ...], split: str, seed: int) -> tuple[Problem, ...]:
    if count < 1 or not stages or not 1 <= min(stages) <= max(stages) <= MOST:
        raise UserError(f"ask for at least one problem of 1 to {MOST} stages, got count={count}, stages={stages}")
    rng = random.Random(derive_seed("code_tests", split, seed))
    return tuple(_draw(rng, stages[at % len(stages)], held_out=split == "held out") for at in range(count))


def _draw(rng: random.Random, stages: int, *, held_out: bool) -> Problem:
    """Draws again until the example has a value that is not the list itself, and there are hidden tests enough."""
    while True:
        words = [_pick(rng, tuple(LISTS)) for _ in range(stages - 1)] + [_pick(rng, tuple(READINGS))]
        if stages > 1 and _apart(*words) != held_out:
            continue
        notes = {word: _pick(rng, meanings) for word, meanings in READINGS.items()}
        program = tuple(notes[word] for word in words)
        shown = _list(rng, held_out=held_out and stages == 1)
        lists = (_list(rng, held_out=True) for _ in range(10 * HIDDEN))
        hidden = list(islice((given for given in lists if outcome(program, given) is not None), HIDDEN))
        if outcome(program, shown) in (None, [], shown) or len(hidden) < HIDDEN:
            continue
        example = f"a, u = {shown}, {outcome(program, shown)}"
        return Problem(
            text=f"{example}\n{', '.join(words)}",
            setup=f"{example}\nnotes = {notes}",
            calls=tuple(f"f({given})" for given in hidden),
            expected=tuple(repr(outcome(program, given)) for given in hidden),
            entry="f",
            kind=f"{stages} stage" + "s" * (stages > 1),
        )


def _list(rng: random.Random, *, held_out: bool) -> list[int]:
    while True:
        found = [int(rng.random() * DIGITS) for _ in range(LENGTH)]
        if _apart(*found) == held_out:
            return found


def _apart(*parts: str | int) -> bool:
    """Whether this is of the held-out fifth."""
    return derive_seed("code_tests held out", *parts) % HELD_OUT_SHARE == 0


def _pick(rng: random.Random, values: Sequence[T]) -> T:
    return values[int(rng.random() * len(values))]
