"""Rendered text to token ids, such that no message can forge a control token.

Text in a message that spells a control token stays text: before rendering a break (U+FDD0, a code point that Unicode reserves
for such inner use and that is dropped from messages) is put inside the look-alike, and rendered text is cut at the breaks
before encoding, so that no piece holds the token's spelling. Special tokens and stop tokens never come from a message. Tokens
that are added but not special and that the template writes itself (`<think>`, `<tool_call>`) come from the text of system
and assistant messages as written, never from users, tools or tool schemas.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from tokenizers import Encoding, Tokenizer

BREAK = "\ufdd0"

SENTINEL = "zqSENTINELqz"
"""Stands for what was sampled when a template is rendered: nothing it would trim, split or escape. No message can hold it."""

LONG = 1 << 14
"""Characters from which a text is encoded without the GIL, so that other threads go on meanwhile."""

Value = TypeVar("Value")


def _pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(set(tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _break_up(text: str, tokens: re.Pattern[str]) -> str:
    """The text with a break inside everything that spells one of the tokens; a token of one character is dropped."""
    if BREAK in text:
        text = text.replace(BREAK, "")
    match = tokens.search(text)
    if match is None:
        return text
    parts: list[str] = []
    at = 0
    while match is not None:
        start, end = match.span()
        if end - start == 1:
            parts.append(text[at:start])
            at = end
        else:
            # The search goes on inside the match: another token may overlap it.
            parts.extend((text[at : start + 1], BREAK))
            at = start + 1
        match = tokens.search(text, at)
    return "".join((*parts, text[at:]))


class Encoder:
    """One tokenizer, and which of its tokens are control tokens."""

    def __init__(self, tokenizer: Tokenizer, literals: str, stop_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self.special = {number: token.content for number, token in added.items() if token.special or number in stop_ids}
        control = {token.content for token in added.values() if token.content in literals and token.content.strip()}
        self._special = _pattern(self.special.values())
        self._own = _pattern({*self.special.values(), SENTINEL})
        self._foreign = _pattern({*self.special.values(), *control, SENTINEL})
        self._stop = _pattern(added[number].content for number in stop_ids if number in added)
        clean = (number for number, token in added.items() if token.special and not token.rstrip)
        self._anchor = next(clean, None)

    def shield(self, text: str, *, own: bool) -> str:
        """Message text with breaks inside look-alikes. `own`: text of the system or the assistant."""
        return _break_up(text, self._own if own else self._foreign)

    def shield_json(self, value: Any) -> Any:
        """A tool schema with every string shielded, keys included."""
        if isinstance(value, str):
            return self.shield(value, own=False)
        if isinstance(value, dict):
            return {self.shield_json(name): self.shield_json(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.shield_json(item) for item in value]
        return value

    def first_special(self, text: str) -> tuple[int, str] | None:
        """Position and text of the first special token in the text."""
        match = self._special.search(text)
        return None if match is None else (match.start(), match.group())

    def first_stop(self, text: str) -> tuple[int, int] | None:
        """Begin and end of the first stop token in the text."""
        match = self._stop.search(text)
        return None if match is None else match.span()

    def encode(self, text: str, *, after: int | None = None) -> tuple[list[int], list[int]]:
        """Ids of rendered text and the position in it at which each begins (breaks counted).

        `after` is the special token that stands before the text: a tokenizer may treat the beginning of a text in its own
        way (SentencePiece adds a space), so it is encoded too and taken away again.
        """
        if BREAK not in text:
            return self._piece(text, after)
        ids: list[int] = []
        starts: list[int] = []
        at = 0
        for part in text.split(BREAK):
            piece, offsets = self._piece(part, after)
            ids += piece
            starts += [at + offset for offset in offsets]
            at += len(part) + 1
            after = self._anchor
        return ids, starts

    def _piece(self, text: str, after: int | None) -> tuple[list[int], list[int]]:
        if not text:
            return [], []
        anchor = None if after is None else self.special.get(after)
        if anchor is not None:
            encoding = self._encoded(anchor + text)
            ids = encoding.ids
            if ids[0] == after:
                return ids[1:], [start - len(anchor) for start, _ in encoding.offsets[1:]]
        encoding = self._encoded(text)
        return encoding.ids, [start for start, _ in encoding.offsets]

    def _encoded(self, text: str) -> Encoding:
        if len(text) < LONG:
            return self._tokenizer.encode(text, add_special_tokens=False)
        return self._tokenizer.encode_batch([text], add_special_tokens=False)[0]  # without the GIL, unlike `encode`
