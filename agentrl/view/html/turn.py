"""One turn: its tokens, what it was given, what it called and what came of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from agentrl.episode import ToolCall, Turn
from agentrl.view import facts
from agentrl.view.html.markup import Markup, escape, join, tag
from agentrl.view.html.shown import Scale, Shown, credit_class, entropy, level
from agentrl.view.tokens import Piece


def render_turn(
    shown: Shown, turn: Turn, scale: Scale, anchor: str, *, changed: Collection[int] = (), other: Turn | None = None
) -> Markup:
    """A turn that can be folded. In a diff, `changed` are the pieces and `other` the turn that it differs from."""
    entry = shown.credit.get(turn.id)
    marks = [*facts.marks(turn), *(["in no trained row"] if shown.credit and entry is None and turn.trainable else [])]
    told = [facts.size(turn), turn.finish, facts.version(turn), f"{turn.ended - turn.started:.2f} s", turn.id]
    summary = tag(
        "summary",
        tag("b", f"{turn.agent} {turn.index}", class_="who"),
        tag("span", f"credit {entry}", class_=f"credit t {credit_class(entry.mean, scale.credit)}")
        if entry is not None
        else "",
        *(tag("span", mark, class_="mark") for mark in marks),
        tag("span", " · ".join(told), class_="dim"),
    )
    known = {_told(call) for call in other.tool_calls} if other is not None else None
    calls = [render_call(call, new=known is not None and _told(call) not in known) for call in turn.tool_calls]
    return tag(
        "details",
        summary,
        render_context(shown, turn),
        tag("div", render_tokens(shown, turn, scale, changed), class_="tokens", dir="auto"),
        *calls,
        *_below(turn),
        class_="turn",
        id=anchor,
        open=True,
    )


def render_tokens(shown: Shown, turn: Turn, scale: Scale, changed: Collection[int] = ()) -> Markup:
    """The sampled tokens, each coloured by what the reader chooses; the text alone for an engine without ids."""
    if not len(turn.sampled_ids):
        return tag("span", turn.text) if turn.text else tag("span", "(no text)", class_="dim")
    entry = shown.credit.get(turn.id)
    advantage_S = entry.advantage_S if entry is not None else None
    entropy_S = entropy(turn)
    by_id = shown.vocabularies.of(turn) is None
    spans: list[str] = [tag("p", turn.text), tag("p", "token ids", class_="dim")] if by_id and turn.text else []
    for number, piece in enumerate(shown.vocabularies.pieces(turn, turn.sampled_ids)):
        at = slice(piece.start, piece.end)
        forced = piece.start < turn.forced
        classes = ["t"]
        if forced:
            classes.append("f")
        elif advantage_S is not None:
            classes.append(credit_class(_mean(advantage_S[at]), scale.credit))
        elif shown.credit:  # of an episode that nothing learned from no token is marked
            classes.append("u")
        classes.append(_shade("l", -_mean(turn.logprobs[at]), scale.surprise))
        if entropy_S is not None:
            classes.append(_shade("e", _mean(entropy_S[at]), scale.entropy))
        if number in changed:
            classes.append("d")
        if "\n" in piece.text:
            classes.append("w")
        title = "\n".join(_title(shown, turn, piece))
        spans.append(tag("span", piece.text, class_=" ".join(filter(None, classes)), title=title))
    return join(spans)


def _title(shown: Shown, turn: Turn, piece: Piece) -> Iterator[str]:
    """All that is known of a piece's tokens."""
    entry = shown.credit.get(turn.id)
    if piece.end - piece.start > 1:
        yield f"{piece.end - piece.start} tokens that are text only together"
    for at in range(piece.start, piece.end):
        number = int(turn.sampled_ids[at])
        told = [f"{at}: id {number} {shown.vocabularies.name(turn, number)}".rstrip()]
        told.append(f"log-prob {turn.logprobs[at]:.4g}" if len(turn.logprobs) > at else "log-prob unknown")
        if at < turn.forced:
            told.append("forced")
        elif entry is not None:
            told.append(f"advantage {entry.advantage_S[at]:+.4g}")
        for column in turn.columns.values():
            if column.at == "sampled" and column.values.ndim == 1 and len(column.values) > at:
                told.append(f"{column.name} {float(column.values[at]):.4g}")
        yield " · ".join(told)


def render_context(shown: Shown, turn: Turn) -> Markup:
    """What the turn was given beyond its parent, message by message."""
    if not len(turn.context_ids):
        return Markup()
    spans = [(segment.role, segment.start, segment.end) for segment in turn.segments] or [("", 0, len(turn.context_ids))]
    parts = [
        join(
            (
                tag("span", role, class_="role"),
                tag("div", shown.vocabularies.decode(turn, turn.context_ids[start:end]), class_="text", dir="auto"),
            )
        )
        for role, start, end in spans
    ]
    kept = f" behind {turn.parent.kept} kept" if turn.parent is not None else ""
    summary = tag("summary", f"given {len(turn.context_ids)} tokens{kept}")
    return tag("details", summary, *parts, class_="context")


def render_call(call: ToolCall, *, new: bool = False) -> Markup:
    """A tool call and its output; `new` where the other episode of a diff has none like it."""
    good = "ok" if call.status == "ok" else "bad"
    head = tag(
        "div",
        tag("code", facts.asked(call), class_="d" if new else None),
        tag("span", facts.took(call), class_=good),
        tag("span", f"at {call.started:.2f} s", class_="dim"),
        class_="asked",
    )
    return tag(
        "div",
        head,
        tag("div", facts.got(call), class_="text", dir="auto", tabindex=0) if call.output else "",
        class_=f"call {good}",
    )


def _below(turn: Turn) -> Iterator[Markup]:
    if turn.observation:
        yield tag("p", tag("span", "sees", class_="role"), turn.observation, class_="seen", dir="auto")
    for reward in turn.rewards:
        yield tag("p", facts.reward(reward), class_="reward")
    for probe in turn.probes:
        yield tag("p", facts.probe(probe), class_="dim")
    if turn.state is not None:
        keys = (
            ("before", turn.state.before),
            ("action", turn.state.action),
            ("after", turn.state.after),
            ("raw", turn.state.raw),
        )
        told = " · ".join(f"{name} {key}" for name, key in keys if key)
        if told:
            yield tag("p", "state ", escape(told), class_="dim state")
    if turn.costs:
        yield tag("p", f"cost {facts.numbers(turn.costs)}", class_="dim")


def _told(call: ToolCall) -> tuple[str, str, str]:
    return facts.asked(call), call.status, call.output


def _shade(letter: str, value: float, largest: float) -> str:
    shade = level(value, largest)
    return f"{letter}{shade}" if shade else ""


def _mean(values: np.ndarray) -> float:
    """Of some tokens; nan where nothing is known."""
    return float(np.mean(values)) if len(values) else float("nan")
