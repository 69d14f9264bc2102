"""Stop strings: text is looked for in the decoded end of what was sampled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from agentrl.episode import IntArray

Decode: TypeAlias = Callable[[list[int]], str]
_SLACK = 4
"""Tokens before the window, so that a decoder which strips the first space strips none of the stop string's."""


def read_decoder(folder: Path) -> Decode | None:
    """Decodes ids with the folder's tokenizer.json, special tokens included; None when it has none."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))

    def decode(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=False)

    return decode


def find_stop(decode: Decode, stops: tuple[str, ...], sampled: IntArray) -> str | None:
    """The first of `stops` that the newest sampled token completed.

    Every token is at least one byte of text, so a window of as many tokens as the longest stop string has bytes sees it.
    """
    window = max(len(stop.encode()) for stop in stops) + _SLACK
    text = decode(sampled[-window:].tolist())
    return next((stop for stop in stops if stop in text), None)
