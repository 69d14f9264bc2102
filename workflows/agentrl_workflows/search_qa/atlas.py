"""The atlas: facts about countries and cities, and worlds in which they are shuffled.

`World(0)` is the real one. `World(k)` has the same names, but each column of facts is permuted, on its own, among the
countries or cities that have it; there nothing helps but looking it up. A document is a title and one fact a line.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from types import MappingProxyType

from agentrl.effect import derive_seed
from agentrl.errors import UserError

COUNTRY_FIELDS = ("capital", "currency", "currency code", "continent", "domain", "largest neighbour")
CITY_FIELDS = ("country", "time zone", "nearest city")
RELATIONS = ("country", "nearest city", "capital", "largest neighbour")
"""The fields whose value is the title of another document (of a capital, nearly always)."""
HELD_OUT_SHARE = 5
"""One city in five is held out."""

Facts = Mapping[str, Mapping[str, str]]
"""Of each title its fields, in the order of its document."""


@lru_cache(maxsize=1)
def real_facts() -> Facts:
    """The facts of the real world, countries first."""
    file = resources.files("agentrl_workflows.search_qa").joinpath("atlas.json")
    tables = json.loads(file.read_text(encoding="utf-8"))
    facts: dict[str, Mapping[str, str]] = {}
    for table, fields in (("countries", COUNTRY_FIELDS), ("cities", CITY_FIELDS)):
        columns = tables[table]["columns"]
        for row in tables[table]["rows"]:
            entry = dict(zip(columns, row, strict=True))
            facts[entry["name"]] = MappingProxyType({field: entry[field] for field in fields if entry[field] is not None})
    return MappingProxyType(facts)


@lru_cache(maxsize=1)
def countries() -> tuple[str, ...]:
    """The titles of the countries' documents."""
    return tuple(title for title, fields in real_facts().items() if "currency" in fields)


@lru_cache(maxsize=1)
def cities() -> tuple[str, ...]:
    """The titles of the cities' documents."""
    return tuple(title for title, fields in real_facts().items() if "country" in fields)


@lru_cache(maxsize=1)
def held_out_cities() -> frozenset[str]:
    """A fixed fifth of the cities, by a hash of the name: no training question of the real world leads through one."""
    return frozenset(city for city in cities() if derive_seed("search_qa held out", city) % HELD_OUT_SHARE == 0)


class World:
    """The facts of one world; `number` 0 is the real world, any other a permutation of it. Equal numbers, equal worlds."""

    def __init__(self, number: int = 0) -> None:
        if number < 0:
            raise UserError(f"a world's number must be >= 0 (0 = the real one), got {number}")
        self.number = number
        self.facts: Facts = real_facts() if number == 0 else _permuted(number)

    def document(self, title: str) -> str:
        """The text of a document: one `field: value` a line. `KeyError` for a title that is none."""
        return "\n".join(f"{field}: {value}" for field, value in self.facts[title].items())

    def documents(self) -> list[dict[str, str]]:
        """The whole corpus, as `agentrl_tools.search.Search` takes it; ids are titles."""
        return [{"id": title, "title": title, "text": self.document(title)} for title in self.facts]


def _permuted(number: int) -> Facts:
    facts: dict[str, dict[str, str]] = {title: dict(fields) for title, fields in real_facts().items()}
    for titles, fields in ((countries(), COUNTRY_FIELDS), (cities(), CITY_FIELDS)):
        for field in fields:
            having = [title for title in titles if field in facts[title]]
            # random() is what Python promises to keep the same from version to version; shuffle() is not.
            rng = random.Random(derive_seed("search_qa world", number, field))
            values = [value for _, value in sorted((rng.random(), facts[title][field]) for title in having)]
            for title, value in zip(having, values, strict=True):
                facts[title][field] = value
    return MappingProxyType(facts)


@lru_cache(maxsize=256)
def world(number: int) -> World:
    """`World(number)`, kept."""
    return World(number)
