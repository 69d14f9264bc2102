"""The frame of a page: style and script in it, the switch of colours with its legends."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from agentrl.view.html.markup import Markup, tag
from agentrl.view.html.shown import LEVELS, Scale


def document(title: str, scale: Scale, *body: str, differing: bool = False) -> str:
    """A whole page. Its policy lets a browser run this script and this style and load nothing, whatever the texts hold."""
    style, script = (files("agentrl.view.html").joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    allowed = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=allowed),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(style)),
    )
    main = tag("body", _switch(scale, differing), tag("main", *body), tag("output", id="told", hidden=True))
    html = tag("html", head, main, tag("script", Markup(script)), lang="en")
    return f"<!DOCTYPE html>\n{html}\n"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _switch(scale: Scale, differing: bool) -> Markup:
    """Colour by what; only what is known can be chosen. The choice works without scripts."""
    known = [("credit", scale.credit), ("logprob", scale.surprise), ("entropy", scale.entropy)]
    names = [name for name, most in known if most]
    names = ["difference", *names, "none"] if differing else [*names, "none"]
    words = {"logprob": "log-prob"}
    choices = [
        tag(
            "label",
            tag("input", type="radio", name="color", id=f"by-{name}", value=name, checked=name == names[0]),
            words.get(name, name),
        )
        for name in names
    ]
    legends = {
        "credit": (*_shades("n", f"−{scale.credit:.3g}", down=True), *_shades("p", f"+{scale.credit:.3g}")),
        "logprob": (tag("span", "0"), *_shades("l", f"−{scale.surprise:.3g}")),
        "entropy": (tag("span", "0"), *_shades("e", f"{scale.entropy:.3g} nats")),
        "difference": (tag("span", "in one only", class_="t d"),),
        "none": (),
    }
    shown = [tag("span", *legends[name], class_=f"legend of-{name}") for name in names]
    untrained = tag("span", "not trained", class_="t u") if scale.credit else ""
    marks = tag("span", tag("span", "forced", class_="t f"), untrained, class_="legend marks")
    return tag("header", tag("fieldset", tag("legend", "tokens coloured by"), *choices), *shown, marks)


def _shades(letter: str, end: str, *, down: bool = False) -> list[Markup]:
    """Swatches from the weakest to the strongest, and what the strongest means."""
    swatches = tag("span", *(tag("span", " ", class_=f"t {letter}{shade}") for shade in _order(down)), class_="shades")
    return [tag("span", end), swatches] if down else [swatches, tag("span", end)]


def _order(down: bool) -> range:
    return range(LEVELS, 0, -1) if down else range(1, LEVELS + 1)


def anchors_of(number: int, turns: tuple[str, ...]) -> dict[str, str]:
    """Where on the page each turn of its episode `number` stands; ids of turns may hold anything."""
    return {turn: f"e{number}t{at}" for at, turn in enumerate(turns)}
