"""JSON lines: a row a line, strict JSON in UTF-8.

Where JSON has no value: a number that is not finite is the text "nan", "inf" or "-inf"; a log-prob that is nan is null; floats
with any other bits are {"float32": base64}; free JSON with such numbers inside is {"$json": its text as Python writes it}.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from agentrl.episode import FloatArray, IntArray, token_ids
from agentrl.errors import UserError
from agentrl.exchange.row import Entry, of_row, to_row
from agentrl.store.codec import encode_json

_NAN = np.float32(math.nan).tobytes()
_WRAPPED = "$json"


class JSONForm:
    """See `Form`. `careful` wraps all free JSON, for a row where some of it is not strict."""

    def __init__(self, careful: bool = False) -> None:
        self._careful = careful

    def json(self, value: Any) -> Any:
        value = dict(value) if isinstance(value, Mapping) else value
        if self._careful or (isinstance(value, dict) and _WRAPPED in value):
            return {_WRAPPED: encode_json(value)}
        return value

    def of_json(self, held: Any) -> Any:
        return json.loads(held[_WRAPPED]) if isinstance(held, dict) and _WRAPPED in held else held

    def number(self, value: float) -> Any:
        return value if math.isfinite(value) else str(float(value))

    def of_number(self, held: Any) -> float:
        return float(held) if isinstance(held, str) else held

    def ids(self, ids: IntArray) -> Any:
        return ids.tolist()

    def of_ids(self, held: Any) -> IntArray:
        return token_ids(held)

    def floats(self, values: FloatArray) -> Any:
        strange = values[~np.isfinite(values)]
        if strange.tobytes() != _NAN * len(strange):
            return {"float32": self.data(values.tobytes())}
        # nine digits tell every float32 from its neighbours
        return [float(f"{value:.9g}") if value == value else None for value in values.tolist()]

    def of_floats(self, held: Any) -> FloatArray:
        if isinstance(held, dict):
            return np.frombuffer(self.of_data(held["float32"]), np.float32)
        return np.array([math.nan if value is None else value for value in held], np.float32)

    def data(self, data: bytes) -> Any:
        return base64.b64encode(data).decode()

    def of_data(self, held: Any) -> bytes:
        return base64.b64decode(held, validate=True)


_FORM, _CAREFUL = JSONForm(), JSONForm(careful=True)


def to_line(entry: Entry) -> str:
    """An entry as one line, without its end."""
    try:
        text = _encoded(to_row(entry, _FORM))
    except ValueError:  # a number in free JSON is not finite
        text = _encoded(to_row(entry, _CAREFUL))
    return text


def _encoded(row: Mapping[str, Any]) -> str:
    text = json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair has no UTF-8, but it has an escape
        text = json.dumps(row, allow_nan=False, separators=(",", ":"))
    return text


def of_line(line: str | bytes) -> Entry:
    """The inverse of `to_line`; raises what `json.loads` and `of_row` raise."""
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError(f"it is a JSON {type(row).__name__}, and an object is wanted")
    return of_row(row, _FORM)


def write_lines(entries: Iterable[Entry], path: Path) -> int:
    """Writes a file; gives the number of its lines."""
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for entry in entries:
            file.write(to_line(entry) + "\n")
            count += 1
    return count


def read_lines(path: Path) -> Iterator[Entry]:
    """The entries of a file; blank lines are passed over. `UserError` names the line that is none."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                entry = of_line(line)
            except json.JSONDecodeError as error:
                cut = "" if line.endswith(b"\n") else ", and the file ends in it: it was cut off"
                raise UserError(f"{path}:{number} is no JSON{cut}: {error.msg} at column {error.colno}") from error
            except UserError as error:
                raise UserError(f"{path}:{number}: {error}") from error
            except KeyError as error:
                raise UserError(f"{path}:{number} is no episode: it has no field {error}") from error
            except (TypeError, ValueError, AttributeError) as error:
                raise UserError(f"{path}:{number} is no episode: {error}") from error
            yield entry
