"""Server-sent events out of the bytes of a reply, wherever those were cut."""

from __future__ import annotations

from collections.abc import Callable

DATA, END = b"data:", b"[DONE]"
FIELDS = (b":", b"event:", b"id:", b"retry:")
"""A comment, and what no engine server says."""


class Events:
    """Calls `each` with the data of every event up to `[DONE]`. An event is one line, as engine servers write them.

    A line that is no event is given to `each` as it is: whoever parses it can tell that it is none.
    """

    def __init__(self, each: Callable[[bytes], None]) -> None:
        self._each = each
        self._begun: list[bytes] = []
        """The pieces of a line whose end has not come."""
        self.ended = False
        """Whether `[DONE]` has come."""

    def feed(self, piece: bytes) -> None:
        """The next bytes."""
        first, *lines = piece.split(b"\n")
        self._begun.append(first)
        for line in lines:
            self._line(b"".join(self._begun))
            self._begun = [line]

    def close(self) -> None:
        """After the last bytes. Of an event that was cut nothing is told."""
        line = b"".join(self._begun)
        if not line.startswith(DATA) or line.strip().endswith(END):
            self._line(line)

    def _line(self, line: bytes) -> None:
        data = line.removeprefix(DATA).strip()
        self.ended = self.ended or data == END
        if data and not self.ended and not line.startswith(FIELDS):
            self._each(data)
