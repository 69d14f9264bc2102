"""`recorded`: a tool whose results are written to a tape, and given from it when the same is asked again.

For training on a search engine that changes or costs money: recorded once, a run can be repeated to the bit with the network
gone. The tape is an SQLite file; many calls, threads and processes may use one at the same time.
"""

from __future__ import annotations

import asyncio
import difflib
import hashlib
import inspect
import json
import sqlite3
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from agentrl.errors import ToolError, UserError, capture, record_error, recreate_error
from agentrl.tool import Tool, ToolOutput, as_tool

Mode = Literal["auto", "record", "replay"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS tape(
  key BLOB PRIMARY KEY, tool TEXT NOT NULL, version TEXT NOT NULL, arguments TEXT NOT NULL, error INTEGER NOT NULL,
  result TEXT NOT NULL) WITHOUT ROWID
"""
_APPLICATION_ID = 0x61676C74
"""`PRAGMA application_id` of every tape ("aglt")."""
_NEAR = 2000
"""So many calls of a tape are looked through for one like that which is missing."""


def recorded(tool: Any, tape: str | Path, *, mode: Mode = "auto", version: str = "", errors: bool = False) -> Tool:
    """The tool with a tape; its name, schema and limits, as a model sees them, are unchanged.

    `mode="auto"` gives what is on the tape and records what is not; `"record"` makes each call anew, once, and replaces what an
    earlier process recorded; `"replay"` never calls the tool: a call that is not on the tape is a `ToolError`, which ends the
    episode. A call is known by the tool's name, its arguments and `version`: give another version to a tool that answers
    otherwise (another corpus, another number of results). Equal calls at the same time are made once. With `errors=True` what
    the tool raises is recorded, too, but never a `ToolError`, nor a timeout. A tool that changes the world is refused.
    """
    inner = as_tool(tool)
    if mode not in get_args(Mode):
        raise UserError(f"recorded({inner.name}) needs mode 'auto', 'record' or 'replay', got {mode!r}")
    if inner.outlives or inner.keyed:
        raise UserError(f"tool {inner.name} changes something beyond this process, so its calls cannot be given from a tape")
    if mode == "replay" and not Path(tape).is_file():
        raise UserError(f"there is no tape {tape} to replay {inner.name} from; record one with mode='auto'")
    return replace(inner, call=_Recorded(inner, Tape(tape, read_only=mode == "replay"), mode, version, errors), is_async=True)


class Tape:
    """The file. Safe to call from any thread; each call is one short transaction."""

    def __init__(self, path: str | Path, *, read_only: bool = False) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = f"{self.path.resolve().as_uri()}?mode={'ro' if read_only else 'rwc'}"
            self._connection = sqlite3.connect(file, timeout=60, check_same_thread=False, isolation_level=None, uri=True)
            weakref.finalize(self, self._connection.close)
            if not read_only:
                self._prepare()
            elif self._connection.execute("PRAGMA application_id").fetchone() != (_APPLICATION_ID,):
                raise UserError(f"{self.path} is a database but no tape; give another path")
        except (sqlite3.Error, OSError) as error:
            raise UserError(f"{self.path} cannot be used as a tape ({error}); give another path") from error

    def _prepare(self) -> None:
        """Makes a new file a tape, in one transaction, as several processes may begin at once."""
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if application != _APPLICATION_ID and tables:
                raise UserError(f"{self.path} is a database but no tape; give another path")
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute(_SCHEMA)
        finally:
            connection.execute("COMMIT")
        with capture():  # refused while another process is at the file, which then sets it
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")

    def get(self, key: bytes) -> tuple[bool, Any] | None:
        """Whether the call raised, and its result."""
        found = self._run("SELECT error, result FROM tape WHERE key = ?", (key,))
        return (bool(found[0][0]), json.loads(found[0][1])) if found else None

    def put(self, key: bytes, call: tuple[str, str, str], error: bool, result: Any, *, anew: bool) -> None:
        """Writes a result; where another process was faster its result stays, unless `anew`."""
        verb = "REPLACE" if anew else "IGNORE"
        values = (key, *call, int(error), json.dumps(result))
        self._run(f"INSERT OR {verb} INTO tape(key, tool, version, arguments, error, result) VALUES(?, ?, ?, ?, ?, ?)", values)

    def near(self, tool: str, arguments: str) -> list[str]:
        """Recorded calls of the tool that are like this one."""
        rows = self._run("SELECT arguments FROM tape WHERE tool = ? LIMIT ?", (tool, _NEAR))
        return difflib.get_close_matches(arguments, dict.fromkeys(row[0] for row in rows), n=3)

    def _run(self, sql: str, values: tuple[Any, ...]) -> list[Any]:
        try:
            with self._lock:
                return self._connection.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise ToolError(f"the tape {self.path} cannot be read or written: {error}; is its disk full?") from error


@dataclass(init=False, eq=False)
class _Recorded:
    """What a recorded tool calls. Its fields are what an experiment tells of it: a run may go on in another mode."""

    tool: Tool
    version: str

    def __init__(self, tool: Tool, tape: Tape, mode: Mode, version: str, errors: bool) -> None:
        self.tool = tool
        self.version = version
        self._tape = tape
        self._mode = mode
        self._errors = errors
        self._anew: set[bytes] = set()
        """With `mode="record"`, what was recorded since this tool was made: it is not asked for again."""
        self._locks: weakref.WeakValueDictionary[tuple[int, bytes], asyncio.Lock] = weakref.WeakValueDictionary()

    async def __call__(self, **arguments: Any) -> ToolOutput:
        said = json.dumps(arguments, sort_keys=True, ensure_ascii=False).encode(errors="backslashreplace").decode()
        call = (self.tool.name, self.version, said)
        key = hashlib.blake2b(json.dumps(call).encode(), digest_size=16).digest()
        known = self._known(key)
        if known is None and self._mode == "replay":
            near = self._tape.near(self.tool.name, said)
            told = f"near it are {'; '.join(near)}" if near else "and none like it"
            what = f"{self.tool.name}({said})" + (f" of version {self.version!r}" if self.version else "")
            raise ToolError(f"the tape {self._tape.path} holds no {what}, {told}; record it with mode='auto'")
        if known is None:
            lock = self._locks.setdefault((id(asyncio.get_running_loop()), key), asyncio.Lock())
            async with lock:  # whoever waited here finds what the first one recorded, or calls if that one failed
                known = self._known(key) or await self._made(key, call, arguments)
        error, result = known
        if error:
            raise recreate_error(result)
        return ToolOutput(result["text"], result["data"], result["state"])

    def _known(self, key: bytes) -> tuple[bool, Any] | None:
        return None if self._mode == "record" and key not in self._anew else self._tape.get(key)

    async def _made(self, key: bytes, call: tuple[str, str, str], arguments: Mapping[str, Any]) -> tuple[bool, Any]:
        """Calls the tool and records what it gave: all processes are given what the tape then holds."""
        inner, error, result = self.tool, False, {}
        with capture() as caught:
            given = inner.call(**arguments) if inner.is_async else await asyncio.to_thread(inner.call, **arguments)
            output = _as_output(await given if inspect.isawaitable(given) else given)
            result = {"text": output.text, "data": dict(output.data), "state": output.state}
        if caught.error is not None:
            if not self._errors or isinstance(caught.error, ToolError | TimeoutError):
                raise caught.error
            error, result = True, record_error(caught.error)
        self._tape.put(key, call, error, result, anew=self._mode == "record")
        self._anew.add(key)
        return self._tape.get(key) or (error, result)


def _as_output(given: Any) -> ToolOutput:
    if isinstance(given, ToolOutput):
        return given
    return ToolOutput(given if isinstance(given, str) else json.dumps(given, ensure_ascii=False, default=str))
