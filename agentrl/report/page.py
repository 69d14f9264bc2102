"""The page: one HTML file with its style and its pictures in it, and nothing that is fetched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agentrl.errors import UserError
from agentrl.report import say
from agentrl.report.gather import Gathered
from agentrl.report.sections import SECTIONS, tiles
from agentrl.view.html.markup import Markup, tag


def write_page(gathered: Gathered, file: str | Path) -> Path:
    """Writes the page in place of one that is there; gives its path. `UserError` if it cannot be written."""
    file = Path(file)
    if file.is_dir() or not file.parent.is_dir():
        what = f"{file} is a folder" if file.is_dir() else f"there is no folder {file.parent}"
        raise UserError(f"cannot write the page: {what}; give --out a file in a folder that exists")
    try:
        file.write_text(page(gathered), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write the page {file}: {error.strerror}; give --out a file that can be written") from error
    return file


def page(gathered: Gathered) -> str:
    """The whole document."""
    name = gathered.described["experiment"]["workflow"]["name"] if gathered.described else gathered.folder.resolve().name
    links = [tag("a", title, href=f"#{_anchor(title)}") for title in SECTIONS]
    sections = [_section(title, make(gathered)) for title, make in SECTIONS.items()]
    style = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{name}: report"),
        tag("style", Markup(style)),
    )
    top = tag("header", tag("h1", name), tag("p", say.of_run(gathered), class_="dim"), tag("nav", *links))
    body = tag("body", tag("main", top, tiles(gathered), *sections))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _section(title: str, inner: Sequence[Markup]) -> Markup:
    return tag("section", tag("h2", title), *inner, id=_anchor(title))


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")
