"""A scripted policy for the atlas: right with a given skill, else a valid action at random.

It reads the prompt alone, as the model does. The right action follows the question's chain through the documents that
the prompt holds: search the first title whose document is missing, or answer. It therefore also finds back from a wrong
search.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from agentrl.effect import derive_seed
from agentrl.errors import UserError
from agentrl.transformer.tiny import SPECIAL, TOOL, USER
from agentrl_workflows.search_qa.atlas import CITY_FIELDS, COUNTRY_FIELDS, RELATIONS
from agentrl_workflows.search_qa.model import CLOSE, OPEN

Demonstrator = Callable[[str, random.Random], str]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a prompt holds: the title a question starts at, the fields to follow from there, and the documents found."""

    start: str
    chain: tuple[str, ...]
    documents: dict[str, dict[str, str]]
    last: str
    """The title of the last document; empty = none yet."""


def demonstrator(skill: float, *, haste: float = 0.0) -> Demonstrator:
    """`demonstrate(prompt, rng)`: the right action with probability `skill`, else one of `valid_actions`, evenly.

    With probability `haste` a wrong action is instead to give the title that should be searched next as the answer.
    """
    if not 0 <= skill <= 1 or not 0 <= haste <= 1:
        raise UserError(f"skill and haste are probabilities, got skill={skill}, haste={haste}")

    def demonstrate(prompt: str, rng: random.Random) -> str:
        seen = read_prompt(prompt)
        right = right_action(seen)
        if rng.random() < skill:
            return right
        if seen.last and right.startswith(OPEN) and rng.random() < haste:
            return right.removeprefix(OPEN).removesuffix(CLOSE)
        actions = valid_actions(seen)
        return actions[int(rng.random() * len(actions))]

    return demonstrate


def teacher(skill: float, *, seed: int = 0) -> Demonstrator:
    """Lookups (questions of one hop) done right, as a script can, and one demonstration of every longer question.

    Those come from `demonstrator(skill)` and are a fixed set: the same prompt always gets the same reply.
    """
    lookup, search = demonstrator(1.0), demonstrator(skill)

    def teach(prompt: str, rng: random.Random) -> str:
        if len(read_prompt(prompt).chain) == 1:
            return lookup(prompt, rng)
        return search(prompt, random.Random(derive_seed("search_qa demonstration", seed, prompt)))

    return teach


def read_prompt(prompt: str) -> Seen:
    """The last question of a prompt in this model's template and the documents after it; `UserError` without a question."""
    _, found, rest = prompt.rpartition(USER)
    if not found:
        raise UserError(f"the demonstrator needs a prompt with {USER}FIELD of NAME?, got {prompt[-80:]!r}")
    question, *later = rest.split(TOOL)
    start, chain = read_question(_until_special(question))
    documents: dict[str, dict[str, str]] = {}
    last = ""
    for text in later:
        title, *lines = _until_special(text).split("\n")
        if lines:
            last = title
            documents[title] = dict(line.split(": ", 1) for line in lines if ": " in line)
    return Seen(start, chain, documents, last)


def read_question(text: str) -> tuple[str, tuple[str, ...]]:
    """(title, fields to follow from there) of "FIELD of the FIELD of NAME?"; `UserError` for another form."""
    rest = text.strip().removesuffix("?")
    asked: list[str] = []
    while (field := _field_before_of(rest)) is not None:
        asked.append(field)
        rest = rest[len(field) + len(" of ") :]
        if _field_before_of(rest.removeprefix("the ")) is not None:
            rest = rest.removeprefix("the ")
    if not asked or not rest:
        raise UserError(f"the demonstrator reads questions such as 'currency of the country of Lima?', got {text[:80]!r}")
    return rest, tuple(reversed(asked))


def _field_before_of(text: str) -> str | None:
    return next((field for field in (*COUNTRY_FIELDS, *CITY_FIELDS) if text.startswith(f"{field} of ")), None)


def right_action(seen: Seen) -> str:
    """Searches the first document of the chain that is missing; answers when none is."""
    at = seen.start
    for field in seen.chain:
        if at not in seen.documents:
            return f"{OPEN}{at}{CLOSE}"
        at = seen.documents[at].get(field, seen.start)
    return at


def valid_actions(seen: Seen) -> list[str]:
    """Searches of every title that the prompt names as such, and the values of the last document as answers."""
    titles = dict.fromkeys([seen.start, *seen.documents])
    answers = list(seen.documents[seen.last].values()) if seen.last else []
    titles |= dict.fromkeys(
        value for fields in seen.documents.values() for field, value in fields.items() if field in RELATIONS
    )
    return [*(f"{OPEN}{title}{CLOSE}" for title in titles), *answers]


def _until_special(text: str) -> str:
    for token in SPECIAL:
        text = text.partition(token)[0]
    return text
