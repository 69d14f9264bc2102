"""Chat templates as Jinja: the sandbox, filters and globals that Hugging Face chat templates are written for.

The environment has what `transformers.apply_chat_template` offers a template, no more; a test renders every known template
with both. Templates come from strangers, hence the immutable sandbox, and data are plain JSON values only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


class _Generation(Extension):
    """`{% generation %}` marks what the assistant writes, for training masks; here the body is all that counts."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Dict:
    """`dict` for templates, without the class's own attributes."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class _Namespace(Namespace):
    """`namespace` for templates; names with a leading underscore are refused, as they reach CPython's internals."""

    def __init__(*args: Any, **values: Any) -> None:  # pyright: ignore[reportSelfClsParameterName] - a template may pass self=
        attributes = dict(*args[1:], **values)
        for name in attributes:
            _refuse_underscore(name)
        Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


def _refuse_underscore(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a chat template may not set the namespace attribute {name!r}")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML; templates want plain JSON."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.exceptions.TemplateError(message)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    offered: dict[str, Any] = {"raise_exception": _raise_exception, "dict": _Dict(), "namespace": _Namespace}
    environment.globals.update(offered)
    return environment


@lru_cache(maxsize=32)
def _compile(source: str) -> tuple[jinja2.Template, str]:
    """The template, and its literal strings joined by NUL: what of a tokenizer's added tokens it writes itself."""
    environment = _environment()
    tree = environment.parse(source)
    literals = [node.data for node in tree.find_all(nodes.TemplateData)]
    literals += [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
    return environment.from_string(source), "\0".join(literals)


class ChatTemplate:
    """A compiled chat template with the tokenizer's special tokens and fixed arguments.

    `clock` is what `strftime_now` reads: a few templates write today's date, so a run that must be repeated to the token
    gives a fixed one.
    """

    def __init__(self, source: str, variables: Mapping[str, Any], clock: Callable[[], datetime] = datetime.now) -> None:
        self.source = source
        self._template, self.literals = _compile(source)
        self._variables = {**variables, "strftime_now": lambda form: clock().strftime(form)}  # pyright: ignore[reportUnknownLambdaType]

    def __call__(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        *,
        prompt: bool,
        args: Mapping[str, Any],
    ) -> str:
        """The text of the messages, with the generation prompt if `prompt`. Raises `jinja2.TemplateError`."""
        return self._template.render(
            self._variables, messages=messages, tools=tools, documents=None, add_generation_prompt=prompt, **args
        )
