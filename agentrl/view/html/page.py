"""The pages: one episode, several, and two side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from agentrl.view import facts
from agentrl.view.html.diff import render_diff
from agentrl.view.html.document import anchors_of, document
from agentrl.view.html.markup import Markup, join, tag
from agentrl.view.html.shown import Scale, Shown
from agentrl.view.html.timeline import render_timeline
from agentrl.view.html.turn import render_turn
from agentrl.view.listing import COLUMNS, WORDS, cells
from agentrl.view.shape import End, Fork, walk

_DEEPEST = 24
"""Branches in each other; deeper ones stand beside their parent, for browsers cut what is nested more deeply."""


def episode_page(shown: Shown) -> str:
    """One episode: head, timeline, tree."""
    scale = Scale.over([shown])
    return document(f"episode {shown.episode.id}", scale, *notes([shown]), render_episode(shown, scale, 0))


def list_page(name: str, all_shown: Sequence[Shown], left_out: int = 0) -> str:
    """A table of episodes and each of them, folded."""
    scale = Scale.over(all_shown)
    head = tag(
        "tr", *(tag("th", column, scope="col", class_=None if at in WORDS else "number") for at, column in enumerate(COLUMNS))
    )
    rows: list[Markup] = []
    for number, shown in enumerate(all_shown):
        first, *rest = cells(shown.split, shown.step, shown.episode)
        others = [tag("td", cell, class_=None if at in WORDS else "number") for at, cell in enumerate(rest, 1)]
        rows.append(tag("tr", tag("td", tag("a", first, href=f"#e{number}")), *others))
    table = tag("div", tag("table", tag("thead", head), tag("tbody", *rows), class_="list"), class_="wide")
    sections = [
        tag("details", tag("summary", _title(shown)), render_episode(shown, scale, number), class_="episode", id=f"e{number}")
        for number, shown in enumerate(all_shown)
    ]
    more = tag("p", f"the last {len(all_shown)} of {len(all_shown) + left_out}", class_="dim") if left_out else ""
    return document(name, scale, tag("h1", name), *notes(all_shown), table, more, *sections)


def diff_page(left: Shown, right: Shown) -> str:
    """Two episodes side by side, turn by turn, on one scale."""
    scale = Scale.over([left, right])
    title = f"{left.episode.id} and {right.episode.id}"
    return document(title, scale, tag("h1", title), *notes([left, right]), render_diff(left, right, scale), differing=True)


def notes(all_shown: Sequence[Shown]) -> Iterator[Markup]:
    """What the page lacks, and why; each once."""
    for problem in dict.fromkeys(problem for shown in all_shown for problem in shown.vocabularies.problems):
        yield tag("p", problem, class_="note")


def render_episode(shown: Shown, scale: Scale, number: int) -> Markup:
    """All of one episode; `number` keeps its anchors apart from those of others on the page."""
    anchors = anchors_of(number, tuple(turn.id for turn in shown.episode.turns))
    parts = (render_head(shown), render_timeline(shown, scale, anchors), render_tree(shown, scale, anchors))
    return tag("article", *parts)


def render_head(shown: Shown) -> Markup:
    """Facts, rewards, and what it came to."""
    episode = shown.episode
    told: list[tuple[str, str]] = [("task", facts.as_text(episode.task))]
    if episode.failure is not None:
        told.append((f"failure ({episode.failure.fault})", episode.failure.message))
    if episode.output is not None:
        told.append(("output", facts.as_text(episode.output)))
    told += [("reward", facts.reward(reward).removeprefix("reward ")) for reward in episode.rewards]
    if episode.metrics:
        told.append(("metrics", facts.numbers(episode.metrics)))
    if episode.stops:
        told.append(("stops", facts.stops(episode)))
    if shown.credit:
        steps = sorted({row.step for entry in shown.credit.values() for row in entry.rows})
        told.append(("learned in", f"step {', '.join(map(str, steps))}"))
    told.append(("paid", facts.ledger(episode)))
    run = [f"group {episode.group}", f"{shown.split} {shown.step}", episode.source, f"seed {episode.seed}"]
    run += [f"{episode.seconds:.2f} s", f"workflow {episode.workflow[:12]}"]
    if episode.fork_of is not None:
        run.append(f"fork of {episode.fork_of} at {episode.fork_cut}")
    listed = [join((tag("dt", name), tag("dd", value, class_=name.split(" ")[0], dir="auto"))) for name, value in told]
    return tag("section", tag("h2", _title(shown)), tag("p", " · ".join(run), class_="dim"), tag("dl", *listed), class_="head")


def _title(shown: Shown) -> Markup:
    episode = shown.episode
    return join((episode.id, " ", tag("span", episode.status, class_=f"status {episode.status}")))


def render_tree(shown: Shown, scale: Scale, anchors: Mapping[str, str]) -> Markup:
    """The turns; branches can be folded."""
    parts: list[str] = []
    depth = 0
    for event in walk(shown.episode):
        if isinstance(event, Fork):
            depth += 1
            if depth <= _DEEPEST:
                parts.append(f'<details class="branch" open><summary>branch {event.index + 1} of {event.count}</summary>')
            else:
                parts.append(f'<p class="dim">branch {event.index + 1} of {event.count}, {depth} deep</p>')
        elif isinstance(event, End):
            if depth <= _DEEPEST:
                parts.append("</details>")
            depth -= 1
        else:
            parts.append(render_turn(shown, event.turn, scale, anchors[event.turn.id]))
    if not parts:
        parts.append(tag("p", "no turn yet" if shown.episode.status == "running" else "no turns", class_="dim"))
    return tag("section", Markup("".join(parts)), class_="tree")
