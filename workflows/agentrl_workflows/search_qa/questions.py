"""Questions over the atlas, drawn from a seed; each names the documents that lead to its answer.

The text is the chain read backwards: "currency of the largest neighbour of the country of Lima?" needs the documents of
Lima, Peru and Brazil, in this order: 3 hops. Answers are values as they stand in the last document.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from agentrl.effect import derive_seed
from agentrl.errors import UserError
from agentrl_workflows.search_qa.atlas import RELATIONS, cities, countries, held_out_cities, world

T = TypeVar("T")

MAX_HOPS = 6
TRAIN_WORLDS = tuple(range(1, 65))


@dataclass(frozen=True)
class Question:
    """One task: `gold` are the ids of the documents of `world` that lead to `answer`, first to last; `hops` is their number.

    A question from outside has its text alone.
    """

    text: str
    answer: str = ""
    world: int = 0
    hops: int = 0
    gold: tuple[str, ...] = ()


def exact_match(answer: str, gold: str) -> float:
    """1.0 when the two are the same, case and blanks aside; 0.0 otherwise, and without a gold answer."""
    return float(bool(gold) and _plain(answer) == _plain(gold))


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def train_questions(
    count: int, *, hops: Sequence[int] = (1, 2), seed: int = 0, worlds: Sequence[int] = TRAIN_WORLDS, real: float = 0.25
) -> list[Question]:
    """`count` questions, a share `real` of them over the real world, the rest over `worlds`.

    Those of the real world neither start at, lead through nor ask for a held-out city.
    """
    _check(count, hops)
    if not 0 <= real <= 1 or (real < 1 and not worlds):
        raise UserError(f"real must be a share from 0 to 1 with worlds for the rest, got real={real}, {len(worlds)} worlds")
    rng = random.Random(derive_seed("search_qa train", seed))
    kinds = (cities(), countries())
    found = []
    for at in range(count):
        number = 0 if rng.random() < real else _pick(rng, worlds)
        hidden = held_out_cities() if number == 0 else frozenset[str]()
        found.append(_draw(rng, number, hops[at % len(hops)], _pick(rng, kinds), hidden))
    return found


def held_out_questions(count: int, *, hops: Sequence[int] = (1, 2), seed: int = 0) -> list[Question]:
    """`count` different questions over the real world that all start at a held-out city."""
    _check(count, hops)
    rng = random.Random(derive_seed("search_qa held out", seed))
    starts = tuple(sorted(held_out_cities()))
    found: dict[str, Question] = {}
    for _ in range(20 * count):
        question = _draw(rng, 0, hops[len(found) % len(hops)], starts, frozenset())
        found.setdefault(question.text, question)
        if len(found) == count:
            return list(found.values())
    raise UserError(f"there are no {count} held-out questions of {tuple(hops)} hops, only about {len(found)}; ask for fewer")


def _check(count: int, hops: Sequence[int]) -> None:
    if count < 1 or not hops or min(hops) < 1 or max(hops) > MAX_HOPS:
        raise UserError(f"ask for at least one question of 1 to {MAX_HOPS} hops, got count={count}, hops={tuple(hops)}")


def _draw(rng: random.Random, number: int, hops: int, starts: Sequence[str], hidden: frozenset[str]) -> Question:
    """One question; draws again until the chain has `hops` different documents and none of `hidden`."""
    facts = world(number).facts
    while True:
        chain = [_pick(rng, starts)]
        asked: list[str] = []
        while len(asked) < hops:
            last = len(asked) == hops - 1
            fields = [field for field in facts[chain[-1]] if last or field in RELATIONS]
            if not fields:
                break
            asked.append(_pick(rng, fields))
            chain.append(facts[chain[-1]][asked[-1]])
        *gold, answer = chain
        if len(asked) < hops or any(title not in facts for title in gold) or len(set(chain)) < len(chain):
            continue
        if hidden & set(chain):
            continue
        text = " of the ".join(reversed(asked)) + f" of {gold[0]}?"
        return Question(text, answer, number, hops, tuple(gold))


def _pick(rng: random.Random, values: Sequence[T]) -> T:
    return values[int(rng.random() * len(values))]
