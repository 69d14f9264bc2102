"""Small programs told in words that can be read in two ways, with two examples: which reading is meant, a run tells.

    a, u = [3, 8, 5, 1], 5                      def f(x):
    b, v = [2, 9, 7, 4], 9                          x = [v for v in x if v % 2 == 1]
    the odd ones, the last                          x = max(x)
                                                    return x

"The odd ones" are the odd numbers or those in odd places, "the last" the last one or the largest: four programs. Two of them
give 5 and 9 here; hidden tests on other lists tell the right one. Everything is a function of its seed. Held-out problems have
words in an order that no training problem has (a fifth of all orders, by a hash), or, of one stage, lists that none has.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import islice, product
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
TRIAL = "\nf(a) == u, f(b) == v"
"""What a program is tried with; the session knows the examples."""
LENGTH, DIGITS = 4, 10
HIDDEN = 8
"""Hidden tests of a problem."""
HELD_OUT_SHARE = 5
MOST = 3
FAILURES = (IndexError, TypeError, ValueError, ZeroDivisionError)
"""What a program can raise."""

Program = tuple[str, ...]


def source(program: Program) -> str:
    """The program as Python."""
    return HEAD + "".join(f"    x = {stage}\n" for stage in program) + END


def readings(words: Sequence[str]) -> Iterator[Program]:
    """Every program that the words may mean."""
    return product(*(READINGS[word] for word in words))


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
    return _problems(count, stages, "train", seed)


def held_out_problems(count: int, *, stages: Sequence[int] = (1, 2, 3), seed: int = 0) -> list[Problem]:
    """`count` held-out problems."""
    return _problems(count, stages, "held out", seed)


def _problems(count: int, stages: Sequence[int], split: str, seed: int) -> list[Problem]:
    if count < 1 or not stages or not 1 <= min(stages) <= max(stages) <= MOST:
        raise UserError(f"ask for at least one problem of 1 to {MOST} stages, got count={count}, stages={tuple(stages)}")
    rng = random.Random(derive_seed("code_tests", split, seed))
    return [_draw(rng, stages[at % len(stages)], held_out=split == "held out") for at in range(count)]


def _draw(rng: random.Random, stages: int, *, held_out: bool) -> Problem:
    """Draws again until both examples have a value, and the readings are not all of one outcome."""
    while True:
        words = [_pick(rng, tuple(LISTS)) for _ in range(stages - 1)] + [_pick(rng, tuple(READINGS))]
        if stages > 1 and _apart(*words) != held_out:
            continue
        program = tuple(_pick(rng, READINGS[word]) for word in words)
        a, b = (_list(rng, held_out=held_out and stages == 1) for _ in "ab")
        shown = [outcome(program, a), outcome(program, b)]
        others = [other for other in readings(words) if [outcome(other, a), outcome(other, b)] != shown]
        if None in shown or [] in shown or not others:
            continue
        lists = (_list(rng, held_out=True) for _ in range(10 * HIDDEN))
        hidden = list(islice((given for given in lists if outcome(program, given) is not None), HIDDEN))
        setup = f"a, u = {a}, {shown[0]}\nb, v = {b}, {shown[1]}"
        return Problem(
            text=f"{setup}\n{', '.join(words)}",
            setup=setup,
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
