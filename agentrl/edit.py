"""A stored episode changed by hand: the document that a person edits, and what a fork begins with instead.

One rule says what a fork keeps: an effect that was asked for before the first changed result came cannot depend on it, so it
stands as it was recorded; what was asked for later is asked for again, live. So an edited fork is a record like any other: the
effects before the first change by reference, then the fork's own, and it resumes and replays as every episode does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from agentrl.agent import Agent
from agentrl.effect import Effect, EffectKey, digest_request
from agentrl.episode import EMPTY_MAP, Episode, IntArray, digest_ids, token_ids
from agentrl.errors import UserError, capture
from agentrl.rendering.contract import Conversation, Parsed, Renderer, ToolSpec
from agentrl.runtime.record import EDITED
from agentrl.tool import as_tools

BY_HAND = "edited by hand"
"""Why an edited turn is not trained, and the mark on an edited tool result."""
_MARK = ">>>>"
_ABOUT = """\
# {episode}, forked after turn {number}. Change what stands below a {mark} line; the fork goes on live from there.
# If the text of the turn is changed, its tool calls are run again, but for those whose result is changed, too.
# A section that is left as it is, or left out, stays as recorded. Blank lines at the end of a section do not count.
# An empty document stops the fork.
"""


@dataclass(frozen=True, slots=True)
class Edit:
    """What a fork begins with: its parent's effects completed before `cut`, then `effects` of its own (none = a plain fork)."""

    cut: int
    effects: tuple[Effect, ...]
    notes: tuple[str, ...]
    """What the person who edited may want to know."""


@dataclass(frozen=True, slots=True)
class _Section:
    title: str
    about: str
    text: str
    effect: Effect


class Sheet:
    """What may be changed of an episode that is forked after its turn `number`: that turn, and the results that came after it.

    `text` is the document; `edit` reads a changed one. `UserError` where there is no turn that the fork could change.
    """

    def __init__(
        self,
        episode: Episode,
        journal: Sequence[Effect],
        number: int,
        cut: int,
        renderer: Renderer,
        agents: Mapping[str, Agent],
    ) -> None:
        if number < 1:
            raise UserError(f"--fork {number} keeps no turn of {episode.id}: there is nothing to edit; give --fork 1 or more")
        turn = self._turn = episode.turns[number - 1]
        kept = [effect for effect in journal if effect.status in ("ok", "error") and 0 <= effect.completed < cut]
        made = next((effect for effect in kept if effect.turn is not None and effect.turn.id == turn.id), None)
        if made is None:
            raise UserError(
                f"turn {number} of {episode.id} was still being sampled when the next one began beside it, "
                "so the fork does not hold it; give another --fork"
            )
        if not len(turn.sampled_ids):
            raise UserError(f"turn {number} of {episode.id} has no token ids, so its text cannot be changed")
        if turn.tokenizer != renderer.tokenizer_id:
            raise UserError(f"turn {number} of {episode.id} was sampled with another tokenizer than the model's here has")
        self._episode, self._kept, self._cut, self._renderer = episode, kept, cut, renderer
        self._specs: tuple[ToolSpec, ...] = ()
        if turn.agent in agents:
            self._specs = tuple(tool.spec for tool in as_tools(agents[turn.agent].tools).values())
        self._stop = (*turn.sampled_ids[-1:].tolist(),) if turn.sampled_ids[-1] in renderer.stop_ids else ()
        said = renderer.decode(turn.sampled_ids[: len(turn.sampled_ids) - len(self._stop)])
        results = [effect for effect in kept if effect.kind in ("tool", "effect") and effect.completed > made.completed]
        results.sort(key=lambda effect: effect.issued)
        self._sections = (
            _Section(f"turn {number}", f"what {turn.agent} said", said, made),
            *(_Section(f"result {n}", _told(effect), _shown(effect), effect) for n, effect in enumerate(results, 1)),
        )
        self._mark = _MARK
        while any(line.startswith(f"{self._mark} ") for part in self._sections for line in part.text.split("\n")):
            self._mark += ">"

    @property
    def text(self) -> str:
        """The document as it is given to be changed."""
        about = _ABOUT.format(episode=self._episode.id, number=self._sections[0].title.split()[1], mark=self._mark)
        return about + "".join(f"\n{self._mark} {part.title}: {part.about}\n{part.text}\n" for part in self._sections)

    def edit(self, document: str) -> Edit:
        """What a fork begins with by a changed document. `UserError` says which line or section cannot be used, and why."""
        changes = self._read(document)
        if not changes:
            return Edit(self._cut, (), ())
        sections = {part.title: part for part in self._sections}
        first = min((sections[title] for title in changes), key=lambda part: part.effect.completed)
        spoken = self._sections[0].title
        put: dict[EffectKey, Effect] = {}
        notes: tuple[str, ...] = ()
        same_calls = True
        if spoken in changes:
            put[first.effect.key], now = self._spoken(first, changes[spoken])
            notes, same_calls = self._heard(now)
        for title, text in changes.items():
            if title != spoken:
                self._check_order(sections[title], first, spoken in changes, same_calls)
                put[sections[title].effect.key] = self._given(sections[title], text)
        begun = first.effect.completed
        own = [
            put.get(effect.key, effect)
            for effect in self._kept
            if effect.completed >= begun and (effect.issued < begun or effect.key in put)
        ]
        return Edit(begun, (_mark(own, list(changes)), *own), notes)

    def _read(self, document: str) -> dict[str, str]:
        """The changed texts by section."""
        if "\r" not in self.text:
            document = document.replace("\r\n", "\n")
        known = {part.title: part for part in self._sections}
        found: dict[str, list[str]] = {}
        body: list[str] | None = None
        for number, line in enumerate(document.split("\n"), 1):
            if line.startswith(f"{self._mark} "):
                title = " ".join(line.removeprefix(self._mark).partition(":")[0].split())
                if title not in known:
                    raise UserError(f"line {number} begins a section {title!r}; this document has {', '.join(known)}")
                if title in found:
                    raise UserError(f"line {number} begins {title!r} a second time; leave one of the two")
                body = found[title] = []
            elif body is not None:
                body.append(line)
            elif line.strip() and not line.startswith("#"):
                raise UserError(f"line {number} stands above the first {self._mark} line and is no comment: {line[:60]!r}")
        if not found:
            raise UserError("the document is empty: nothing was forked")
        texts = {title: _body(lines) for title, lines in found.items()}
        return {title: text for title, text in texts.items() if text != _body(known[title].text.split("\n"))}

    def _spoken(self, part: _Section, text: str) -> tuple[Effect, IntArray]:
        """The turn's effect with another text, and the ids of that text."""
        renderer = self._renderer
        ids: list[int] = renderer.encode(text).tolist()
        if ids[-1:] != list(self._stop):
            ids.extend(self._stop)
        if not ids:
            raise UserError(f"{part.title} has no text left; a turn that has no stop token needs some")
        inner = next((at for at in ids[: len(ids) - len(self._stop)] if at in renderer.stop_ids), None)
        if inner is not None:
            stop = renderer.decode(token_ids([inner]))
            raise UserError(f"{part.title} holds the stop token {stop!r}, which may stand at its end alone")
        sampled = token_ids(ids)
        effect = part.effect
        assert effect.turn is not None  # the bare turn: what was said of it later stands in effects of its own
        edited = replace(
            effect.turn,
            versions=(),
            sampled_ids=sampled,
            logprobs=np.full(len(ids), np.nan, np.float32),
            text=renderer.decode(sampled),
            digest=digest_ids(self._prompt(), sampled),
            forced=len(ids),
            columns=EMPTY_MAP,
            untrained=BY_HAND,
        )
        return replace(effect, note=f"{BY_HAND}: {effect.note}", turn=edited), sampled

    def _prompt(self) -> IntArray:
        path = self._episode.path(self._turn)
        return path[: len(path) - len(self._turn.sampled_ids)]

    def _heard(self, ids: IntArray) -> tuple[tuple[str, ...], bool]:
        """What the agent's parser makes of a changed text, and whether it is the calls that the turn made before."""
        before, now = self._parsed(self._turn.sampled_ids), self._parsed(ids)
        title = self._sections[0].title
        notes: list[str] = []
        if now.error:
            notes.append(f"{title} does not follow its agent's format now: {now.error}")
        notes += [f"{title} holds a call that cannot be read: {call.error}" for call in now.tool_calls if call.error]
        if before.tool_calls and not now.tool_calls:
            notes.append(f"{title} calls no tool any more")
        return tuple(notes), before.tool_calls == now.tool_calls and bool(before.error) == bool(now.error)

    def _parsed(self, ids: IntArray) -> Parsed:
        conversation = Conversation(tools=self._specs, path=self._prompt().tolist())
        return self._renderer.sampled(conversation, ids)

    def _given(self, part: _Section, text: str) -> Effect:
        """A tool call or an effect with another result."""
        effect = part.effect
        value: Any = None
        if effect.kind == "effect":
            with capture() as caught:
                value = json.loads(text)
            if caught.error is not None:
                raise UserError(f"{part.title} must be JSON, as what `team.effect` gave is ({caught.error}): {text[:60]!r}")
        else:
            value = effect.value if effect.status == "ok" else self._begun(part)
            value = value | {"status": "ok", "output": text, "truncated": False, "data": {BY_HAND: True}, "state": ""}
        return replace(effect, status="ok", value=value, note=f"{BY_HAND}: {effect.note}")

    def _begun(self, part: _Section) -> dict[str, Any]:
        """What is known of a call that failed: that of the turn's calls which asks for the same."""
        effect, turn = part.effect, self._turn
        for call in self._parsed(turn.sampled_ids).tool_calls:
            said = dict(call.arguments)
            if digest_request(turn.id, call.name, json.dumps(said).encode(), call.error) == effect.request:
                times = {"started": effect.at, "ended": effect.at, "attempts": 1}
                return {"turn": turn.id, "arguments": said, "call_id": call.call_id, **times}
        raise UserError(f"{part.title} is of another turn; fork after that turn to change it")

    def _check_order(self, part: _Section, first: _Section, spoken: bool, same_calls: bool) -> None:
        """Refuses a changed result that may not be asked for any more, as something before it is changed."""
        effect = part.effect
        if effect.issued < first.effect.completed or effect is first.effect:
            return
        value = effect.value
        if not (spoken and effect.kind == "tool" and isinstance(value, dict) and value.get("turn") == self._turn.id):
            raise UserError(
                f"{part.title} was asked for after {first.title} came, and may depend on it; "
                "change one of them, and the other in a fork of the fork"
            )
        if not same_calls:
            raise UserError(
                f"{part.title} answers a call that {first.title} does not make any more as it is changed; its calls are run "
                f"again: leave {part.title} as it was"
            )


def _mark(own: Sequence[Effect], titles: Sequence[str]) -> Effect:
    """Says in the fork's own journal which of its effects it began with, and what was changed."""
    last = max(own, key=lambda effect: effect.completed)
    places = [[effect.key.branch, effect.key.position] for effect in own]
    number = last.completed + 1
    return Effect(
        EffectKey(f"/~{EDITED}", 0, number),
        "note",
        EDITED,
        digest_request(EDITED, places),
        ", ".join(titles),
        issued=number,
        completed=number,
        at=last.at,
        value={"places": places, "changed": list(titles)},
    )


def _told(effect: Effect) -> str:
    """An effect in a line: its name, what was asked, and how it ended."""
    value: Mapping[str, Any] = effect.value if isinstance(effect.value, dict) else {}
    status = str(value.get("status", "error")) if effect.kind == "tool" else effect.status
    ended = "" if effect.status == "ok" and status == "ok" else f" ({status})"
    return " ".join(f"{effect.kind} {effect.name} {effect.note}{ended}".split())


def _shown(effect: Effect) -> str:
    """What an effect gave, as it may be edited: a tool's text, or JSON."""
    if effect.kind == "tool" and effect.status == "ok":
        return str(effect.value["output"])
    return json.dumps(effect.value, indent=1, ensure_ascii=False)


def _body(lines: Sequence[str]) -> str:
    """The lines without blank ones at their end."""
    end = len(lines)
    while end and not lines[end - 1].strip():
        end -= 1
    return "\n".join(lines[:end])
