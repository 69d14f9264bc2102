"""Text that models and tools wrote, made safe to show, and laid out in columns of a terminal."""

from __future__ import annotations

import unicodedata


def visible(text: str) -> str:
    """`text` with control and direction-changing characters written out (`\\x1b`); line ends stay, tabs become spaces."""
    text = text.replace("\r\n", "\n").replace("\t", "    ")
    if text.isprintable():
        return text
    return "".join(sign if sign == "\n" or sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def columns(text: str) -> int:
    """Columns of a terminal that `text` takes."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(sign) else 2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text)


def wrap(line: str, width: int) -> list[str]:
    """`line` in pieces of at most `width` columns, cut at blanks where that leaves no piece half empty."""
    pieces: list[str] = []
    while columns(line) > width:
        end = _fitting(line, width)
        blank = line.rfind(" ", 0, end + 1)
        at = blank if blank > end // 2 else end
        pieces.append(line[:at].rstrip(" "))
        line = line[at:].lstrip(" ") if at == blank else line[at:]
    return [*pieces, line]


def _fitting(line: str, width: int) -> int:
    """How many characters fit into `width` columns; at least one."""
    taken = 0
    for index, sign in enumerate(line):
        taken += columns(sign)
        if taken > width:
            return max(1, index)
    return len(line)
