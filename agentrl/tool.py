"""The contract of tools: a typed async function that the model may call; its docstring is the schema.

    async def search(query: str) -> str:
        \"\"\"Search the documents for `query`.\"\"\"

A function, an object with an async or plain `__call__`, or a `Tool` value may stand in `Agent(tools=[...])`. Plain (sync)
functions run in a thread. What a tool raises becomes its result, with status "error": the model sees it, the episode goes on.
Only a `ToolError` ends the episode, as lost with fault "tool": a tool raises it when what it stands on is broken (its server is
gone), so that no model is punished for that.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from agentrl.episode import EMPTY_MAP
from agentrl.errors import UserError
from agentrl.rendering.contract import ToolSpec


@dataclass(frozen=True, slots=True)
class ToolOutput:
    """What a tool gives when it has more to say than text: `data` (JSON) goes into the record, never to the model."""

    text: str
    data: Mapping[str, Any] = EMPTY_MAP
    state: str = ""
    """Canonical key of the environment's state after the call; empty = not an environment."""
    failed: bool = False
    """The call did not do what was asked, and the text says why: its status is "error"."""


@dataclass(frozen=True)
class Tool:
    """A tool with its limits.

    `outlives=True` says that a call changes something beyond this process (a mail, a database): an intent is committed
    before it. After a crash such a call is made again only if `idempotent`, else the episode fails as an unknown effect.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    call: Callable[..., Any]
    timeout: float = 30.0
    max_output: int = 8192
    """Characters; longer output is cut in the middle and says so."""
    retries: int = 0
    """How often a call that raised is made again; only for idempotent tools."""
    idempotent: bool = True
    outlives: bool = False
    inside: bool = False
    """Whether the call is part of the workflow: it may use the team's boxes and effects, each of which is recorded for itself.
    Such a function is async; it is run again on replay, so that it may touch nothing else."""
    is_async: bool = True
    keyed: bool = False
    """`call` takes `idempotency_key` (hidden from the model): the same text for every try of one call, in every process."""
    required: frozenset[str] = field(default_factory=frozenset[str])

    def __post_init__(self) -> None:
        if self.timeout <= 0:
            raise UserError(f"tool {self.name}: timeout must be > 0 seconds, got {self.timeout}")
        if self.inside and not self.is_async:
            raise UserError(f"tool {self.name}: inside=True is for async functions; a thread cannot use the team")
        if self.inside and (self.retries or self.outlives):
            raise UserError(f"tool {self.name}: inside=True goes without retries and outlives; its own effects have them")
        if self.retries and not self.idempotent:
            raise UserError(f"tool {self.name}: retries={self.retries} needs idempotent=True, for a retry repeats the call")

    @cached_property
    def spec(self) -> ToolSpec:
        """The tool as the model sees it."""
        return ToolSpec(self.name, self.description, self.parameters)

    def check(self, arguments: Mapping[str, Any]) -> str:
        """Why these arguments cannot be used; empty = they can."""
        properties: Mapping[str, Any] = self.parameters["properties"]
        missing = sorted(self.required - arguments.keys())
        if missing:
            return f"{self.name} needs {', '.join(missing)}"
        for name, value in arguments.items():
            if name not in properties:
                return f"{self.name} has no argument {name!r}; it takes {', '.join(properties) or 'none'}"
            wanted = _wanted(value, properties[name])
            if wanted:
                return f"{self.name}: {name} must be {wanted}, got {value!r}"
        return ""


_KEY = "idempotency_key"
_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list, tuple),
    "object": (dict,),
}


def _wanted(value: Any, schema: Mapping[str, Any]) -> str:
    """What the schema asks for instead of this value; empty = it fits."""
    if "enum" in schema:
        return "" if value in schema["enum"] else f"one of {', '.join(map(str, schema['enum']))}"
    if "anyOf" in schema:
        wanted = [_wanted(value, option) for option in schema["anyOf"]]
        return " or ".join(wanted) if all(wanted) else ""
    name = str(schema.get("type", ""))
    if name in _JSON_TYPES and (not isinstance(value, _JSON_TYPES[name]) or (isinstance(value, bool) and name != "boolean")):
        return name
    if name == "array" and "items" in schema:
        items: Any = value
        unfit = (_wanted(item, schema["items"]) for item in items)
        return next((f"array of {wanted}" for wanted in unfit if wanted), "")
    return ""


def as_tool(value: Any) -> Tool:
    """A `Tool` from a `Tool`, a function, or a callable object (whose attributes `name`, `timeout` ... override)."""
    if isinstance(value, Tool):
        return value
    if not callable(value):
        raise UserError(f"a tool must be a function, a callable object or a Tool, got {value!r}")
    target: Any = value if inspect.isroutine(value) else type(value).__call__
    name = str(getattr(value, "name", "") or getattr(value, "__name__", "") or type(value).__name__)
    doc = inspect.getdoc(target) or inspect.getdoc(value) or ""
    if not doc:
        raise UserError(f"tool {name} has no docstring; the model reads it to know when to call the tool")
    parameters, required = _schema(target, name)
    limits = {
        key: getattr(value, key)
        for key in ("timeout", "max_output", "retries", "idempotent", "outlives", "inside")
        if hasattr(value, key)
    }
    return Tool(
        name=name,
        description=doc,
        parameters=parameters,
        call=value,
        is_async=inspect.iscoroutinefunction(target),
        keyed=_KEY in inspect.signature(target).parameters,
        required=required,
        **limits,
    )


def tool(**limits: Any) -> Callable[[Callable[..., Awaitable[Any]]], Tool]:
    """A decorator that sets limits: `@tool(timeout=5, retries=2)`."""

    def wrap(function: Callable[..., Awaitable[Any]]) -> Tool:
        return replace(as_tool(function), **limits)

    return wrap


def as_tools(values: Sequence[Any]) -> dict[str, Tool]:
    """Tools by name; two of one name are refused."""
    tools: dict[str, Tool] = {}
    for value in values:
        made = as_tool(value)
        if made.name in tools:
            raise UserError(f"two tools are called {made.name!r}; give one another name")
        tools[made.name] = made
    return tools


def _schema(function: Any, name: str) -> tuple[dict[str, Any], frozenset[str]]:
    try:
        hints = get_type_hints(function, include_extras=True)
    except NameError as error:
        raise UserError(
            f"tool {name}: the annotation {error.name!r} cannot be resolved; import it at the top of its module"
        ) from error
    properties: dict[str, Any] = {}
    required: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in ("self", _KEY):
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise UserError(f"tool {name}: *{parameter.name} cannot be described to a model; name each argument")
        if parameter.name not in hints:
            raise UserError(f"tool {name}: argument {parameter.name!r} has no type annotation")
        properties[parameter.name] = json_type(hints[parameter.name], f"tool {name}: {parameter.name}")
        if parameter.default is parameter.empty:
            required.append(parameter.name)
        elif isinstance(parameter.default, str | int | float | bool):
            properties[parameter.name]["default"] = parameter.default
    schema = {"type": "object", "properties": properties, "required": required}
    return schema, frozenset(required)


def json_type(hint: Any, where: str) -> dict[str, Any]:
    """JSON schema of an annotation; `UserError` for one that JSON cannot say."""
    plain: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object", list: "array"}
    origin = get_origin(hint)
    if hint in plain:
        return {"type": plain[hint]}
    if hint is Any:
        return {}
    if origin is Literal:
        return {"enum": list(get_args(hint))}
    if origin is typing.Annotated:
        inner, *notes = get_args(hint)
        described = [note for note in notes if isinstance(note, str)]
        return json_type(inner, where) | ({"description": described[0]} if described else {})
    if origin in (list, tuple, Sequence):
        items = [item for item in get_args(hint) if item is not Ellipsis]
        return {"type": "array", "items": json_type(items[0], where) if items else {}}
    if origin in (dict, Mapping):
        return {"type": "object"}
    if origin in (Union, types.UnionType):
        options = [json_type(option, where) for option in get_args(hint) if option is not type(None)]
        return options[0] if len(options) == 1 else {"anyOf": options}
    raise UserError(f"{where} has type {hint!r}, which JSON cannot say; use str, int, float, bool, list, dict or Literal")
