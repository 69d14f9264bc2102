"""A tiny model for the pipelines, made on the spot: every line of their programs and every number is one token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agentrl.transformer.tiny import make_tiny_model
from agentrl_workflows.code_tests.pipelines import END, HEAD, LISTS, NUMBERS, SHOW

TOOLS = ("python",)
OPEN, CLOSE = "<python>", "</python>"
"""A call of the tool; one token each, but part of the text."""
ERRORS = (
    "TypeError: 'int' object is not iterable",
    "TypeError: 'int' object is not subscriptable",
    "TypeError: object of type 'int' has no len()",
    "ValueError: max() arg is an empty sequence",
    "ValueError: min() arg is an empty sequence",
    "ValueError: max() iterable argument is empty",
    "ValueError: min() iterable argument is empty",
    "IndexError: list index out of range",
    "SyntaxError: invalid syntax",
    "\n[exit status 1]",
    "[no output]",
)
"""What the programs can fail with, beside what a model of bytes can spell."""


def words() -> Iterator[str]:
    """What is one token."""
    yield from ("a = [", "]\nb = [", "]\nf(a) == ", "\nf(b) == ", "[", "]", ", ", "(", ")", "[]")
    yield from map(str, range(100))
    yield from (HEAD, END, SHOW)
    yield from (f"    x = {stage}\n" for stage in (*LISTS, *NUMBERS))
    yield from ERRORS


def make_model(folder: str | Path, *, seed: int = 0, **shape: Any) -> Path:
    """Writes a Qwen3 decoder of 0.7 M random weights, and its tokenizer, to `folder`.

    `shape` as in `make_tiny_model`. Needs torch. Raises `UserError` when the folder already holds a model.
    """
    return make_tiny_model(folder, words(), TOOLS, seed=seed, **shape)
