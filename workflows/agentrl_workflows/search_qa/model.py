"""A tiny model for the atlas, made on the spot: every title, value and field is one token (see `agentrl.transformer.tiny`)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from agentrl.transformer.tiny import make_tiny_model, vocabulary
from agentrl_workflows.search_qa.atlas import CITY_FIELDS, COUNTRY_FIELDS, real_facts

TOOLS = ("search",)
OPEN, CLOSE = "<search>", "</search>"
"""A call of the tool; one token each, but part of the text."""


@lru_cache(maxsize=1)
def pieces() -> tuple[str, ...]:
    """The vocabulary in order of ids."""
    return vocabulary(words(), TOOLS)


def words() -> Iterator[str]:
    """What is one token: the little that sentences are made of, then fields, titles and values."""
    yield from (" of the ", " of ", "?", "\n", " ", ": ", ", ", "no document")
    for field in (*COUNTRY_FIELDS, *CITY_FIELDS):
        yield field
        yield f"\n{field}: "
    for title, fields in real_facts().items():
        yield title
        yield from fields.values()


def make_model(folder: str | Path, *, seed: int = 0, **shape: Any) -> Path:
    """Writes a Qwen3 decoder of 1.06 M random weights, and its tokenizer, to `folder`.

    `shape` as in `make_tiny_model`. Needs torch. Raises `UserError` when the folder already holds a model.
    """
    return make_tiny_model(folder, words(), TOOLS, seed=seed, **shape)
