"""HTML that cannot be broken out of: every text that is not `Markup` is made visible and escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TypeAlias

from agentrl.view.text import visible


class Markup(str):
    """HTML as it is to stand on the page."""

    __slots__ = ()


Attribute: TypeAlias = "str | int | float | bool | None"
_VOID = ("input", "meta")


def escape(text: str) -> Markup:
    """Text as HTML; `Markup` as it is."""
    return text if isinstance(text, Markup) else Markup(html.escape(visible(text)))


def join(parts: Iterable[str]) -> Markup:
    """Parts end to end."""
    return Markup("".join(map(escape, parts)))


def tag(name: str, /, *inner: str, **attributes: Attribute) -> Markup:
    """An element. `class_` is class and `aria_label` aria-label; attributes that are None or False are left out."""
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(inner)}</{name}>")
