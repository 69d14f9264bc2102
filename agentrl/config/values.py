"""Text to the value that an annotation asks for, and whether a value is what an annotation asks for."""

from __future__ import annotations

import dataclasses
import math
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from agentrl.errors import capture

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_PLAIN = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path", type(None): "none"}


class CannotRead(Exception):
    """The text is no value of this annotation."""


def hints_of(kind: type[Any]) -> dict[str, Any]:
    """Annotations of a dataclass's fields; `Any` for one that cannot be resolved (imported for type checkers only)."""
    with capture():
        return get_type_hints(kind)
    namespace = vars(sys.modules[kind.__module__])
    hints: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        hints[field.name] = Any
        with capture():
            alone = types.SimpleNamespace(__annotations__={field.name: field.type})
            hints[field.name] = get_type_hints(alone, globalns=namespace)[field.name]
    return hints


def read_value(hint: Any, text: str, current: Any) -> Any:
    """`text` as a value of `hint`; where the hint says nothing, as the type of `current`. Raises `CannotRead`."""
    origin = get_origin(hint)
    if origin in (typing.Annotated, typing.Final, typing.ClassVar):
        return read_value(get_args(hint)[0], text, current)
    if hint is Any or isinstance(hint, TypeVar):
        if type(current) in _PLAIN and current is not None:
            return _read_plain(type(current), text)
        raise CannotRead
    if origin is Literal:
        for option in get_args(hint):
            if str(option).lower() == text.lower():
                return option
        raise CannotRead
    if origin in (Union, types.UnionType):
        return _read_union(get_args(hint), text, current)
    if origin in (tuple, list, Sequence) or hint in (tuple, list):
        return _read_several(origin or hint, get_args(hint), text)
    if isinstance(hint, type):
        return _read_plain(hint, text)
    raise CannotRead


def _read_union(options: Sequence[Any], text: str, current: Any) -> Any:
    """The first option that takes the text; text itself is asked last, for it takes everything."""
    if Path in options and str in options:  # text it is, unless it must be expanded
        options = [option for option in options if option is not (str if text.startswith("~") else Path)]
    ranks: list[Any] = [type(None), bool, int, float, Path, str]
    for option in sorted(options, key=lambda option: ranks.index(option) if option in ranks else 3.5):
        try:
            return read_value(option, text, current)
        except CannotRead:
            continue
    raise CannotRead


def _read_plain(kind: type[Any], text: str) -> Any:
    if kind is str:
        return text
    if kind is Path:
        return Path(text).expanduser()
    if kind is type(None) and text.lower() in ("none", "null"):
        return None
    if kind is bool and text.lower() in (*_TRUE, *_FALSE):
        return text.lower() in _TRUE
    if kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            raise CannotRead from None
        if not math.isnan(number):
            return number
    raise CannotRead


def _read_several(kind: type[Any], items: tuple[Any, ...], text: str) -> Any:
    """Values with commas between them, in brackets or not."""
    inner = text[1:-1] if text[:1] + text[-1:] in ("()", "[]") else text
    parts = [part.strip() for part in inner.split(",")] if inner.strip() else []
    if parts and not parts[-1]:
        parts.pop()
    several = kind is not tuple or not items or (len(items) == 2 and items[1] is Ellipsis)
    hints = [items[0] if items else str] * len(parts) if several else list(items)
    if len(hints) != len(parts):
        raise CannotRead
    values = [read_value(hint, part, None) for hint, part in zip(hints, parts, strict=True)]
    return values if kind is list else tuple(values)


def expected(hint: Any, current: Any) -> str:
    """What `read_value` takes, for people."""
    origin = get_origin(hint)
    if origin is Literal:
        return " or ".join(repr(option) if option == "" else str(option) for option in get_args(hint))
    if origin in (Union, types.UnionType):
        options = list(dict.fromkeys(expected(option, current) for option in get_args(hint)))
        return " or ".join(options)
    if origin is tuple and get_args(hint)[1:] != (Ellipsis,):
        return "(" + ", ".join(expected(item, None) for item in get_args(hint)) + ")"
    if origin in (tuple, list, Sequence):
        return f"values with commas between them, each {expected(get_args(hint)[0], None)}"
    if hint in _PLAIN:
        return _PLAIN[hint]
    if (hint is Any or isinstance(hint, TypeVar)) and type(current) in _PLAIN:
        return _PLAIN[type(current)]
    name = getattr(origin or hint, "__name__", str(hint))
    return f"{'an' if name[:1] in 'AEIOU' else 'a'} {name} (file.py:name or module:name)"


def lacking(hint: Any, value: Any) -> list[str]:
    """What `value` lacks of what `hint` asks for; empty = nothing that can be told."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        options = [option for option in get_args(hint) if option is not type(None) or value is None]
        return min((lacking(option, value) for option in options), key=len)
    kind = origin or hint
    if kind is Callable or getattr(kind, "__name__", "") == "Callable":
        return [] if callable(value) else ["__call__"]
    if not isinstance(kind, type):
        return []
    if getattr(kind, "_is_protocol", False):
        asked = [name for name in (*vars(kind), *kind.__annotations__) if name == "__call__" or not name.startswith("_")]
        return [name for name in asked if not hasattr(value, name)]
    if kind in (str, int, float, bool, Path, type(None), object):
        return [] if isinstance(value, kind) else [kind.__name__]
    if issubclass(kind, Sequence | Mapping) or dataclasses.is_dataclass(kind):
        return [] if isinstance(value, kind) else [f"kinship with {kind.__name__}"]
    return []
