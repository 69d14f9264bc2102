"""A plug-in that raised, told in one line: whose, where in its own file, what, and what to do."""

from __future__ import annotations

import inspect
import traceback

from agentrl.errors import UserError, capture, describe


def called(kind: str, plug_in: object) -> str:
    """`estimator RoleCentred`."""
    return f"{kind} {getattr(plug_in, '__qualname__', type(plug_in).__qualname__)}"


def failed(kind: str, plug_in: object, error: Exception, on: str = "") -> UserError:
    """The error to raise from the one that a plug-in raised; `on` says over what it did so."""
    said = str(error) if isinstance(error, UserError) else describe(error)
    place = f"{on}{_line(error, plug_in)}"
    return UserError(f"{called(kind, plug_in)} failed{place}: {said}; mend it and give the same command again")


def _line(error: Exception, plug_in: object) -> str:
    """` at mine.py:12`: the innermost line of the plug-in's own file that the error came through."""
    kind = plug_in if inspect.isroutine(plug_in) else type(plug_in)
    with capture():  # what was defined nowhere has no file
        file = inspect.getfile(kind)
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        return f" at {file}:{lines[-1]}" if lines else ""
    return ""
