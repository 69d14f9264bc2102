"""A tiny model for the pipelines, made on the spot: every line of their programs and every number is one token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agentrl.transformer.tiny import make_tiny_model
from agentrl_workflows.code_tests.pipelines import END, HEAD, READINGS, STAGES, TRIAL, lookup

TOOLS = ("python",)
OPEN, CLOSE = "<python>", "</python>"
"""A call of the tool; one token each, but part of the text."""
ERRORS = (
    "TypeError: 'int' object is not iterable",
    "TypeError: 'int' object is not subscriptable",
    "TypeError: object of type 'int' has no len()",
    "ValueError: max() arg is an empty sequence",
    "ValueError: min() arg is an empty sequence",
    "IndexError: list index out of range",
    "ZeroDivisionError: division by zero",
    "SyntaxError: invalid syntax",
    "\n[exit status 1]",
    "[no output]",
)
"""What such programs fail with; anything else is bytes."""


def words() -> Iterator[str]:
    """What is one token."""
    yield from ("a, u = [", "], ", "]\n", "[", "]", ", ", "\n", "True", "False")
    yield from map(str, range(200))
    yield from (HEAD, END, TRIAL)
    for word, readings in READINGS.items():
        yield from (word, lookup(word))
        yield from map(repr, readings)
    yield from (f"    x = {stage}\n" for stage in STAGES)
    yield from ERRORS


def make_model(folder: str | Path, *, seed: int = 0, **shape: Any) -> Path:
    """Writes a Qwen3 decoder of 0.7 M random weights, and its tokenizer, to `folder`.

    `shape` as in `make_tiny_model`. Needs torch. Raises `UserError` when the folder already holds a model.
    """
    return make_tiny_model(folder, words(), TOOLS, seed=seed, **shape)
