"""What a model's chat template does to a conversation, told before the first token is sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agentrl.episode import digest_ids, token_ids
from agentrl.errors import UserError, capture
from agentrl.rendering.compare import count_deviation, shared_text
from agentrl.rendering.contract import Conversation, Message, ToolRequest, ToolSpec
from agentrl.rendering.dialect import Dialect
from agentrl.rendering.template import TemplateRenderer

QUERY = {
    "type": "object",
    "properties": {"query": {"type": "string", "description": "What to look for."}},
    "required": ["query"],
}
SEARCH = ToolSpec("search", "Search the documents.", QUERY)


@dataclass(frozen=True, slots=True)
class TemplateBreak:
    """A place where the template does not go on from what it wrote before."""

    case: str
    kind: Literal["prompt", "history", "tokens"]
    """The history shows another beginning of the answer than the generation prompt did; a later message changed an earlier
    one; the text agrees but encoding it in one go gives other ids."""
    before: str
    after: str
    """The two texts from a little before the place on; for "tokens" the number of tokens that differ."""
    where: str = ""
    """Which message is written otherwise, and with which other."""


@dataclass(frozen=True, slots=True)
class TemplateReport:
    """How a model folder's template and tokenizer behave. `str` gives the lines a person reads."""

    template_id: str
    tokenizer_id: str
    parser: str
    stop_tokens: tuple[str, ...]
    dialect: Dialect
    breaks: tuple[TemplateBreak, ...]
    refused: tuple[str, ...]
    """Cases that the template cannot render, with its reason."""

    @property
    def append_only(self) -> bool:
        """No message ever changes what was written before it; append and faithful histories give the same paths."""
        return not self.breaks

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know before training on it."""
        found: list[str] = []
        if not self.stop_tokens:
            found.append("no stop token: sampling ends at the token limit alone")
        if not self.dialect.lists_tools:
            found.append("tools are not shown to the model: describe them in the system prompt")
        if self.dialect.calls and self.parser == "tags":
            found.append("the template writes tool calls in a format that agentrl does not know: pass a parser")
        if not self.dialect.tool_role:
            found.append("the template has no role 'tool': tool results are given as the user's messages")
        if not self.dialect.system_role:
            found.append("the template has no role 'system': instructions are put in front of the first user message")
        return tuple(found)

    def __str__(self) -> str:
        head = "append-only" if self.append_only else f"not append-only, {len(self.breaks)} breaks"
        lines = [
            f"template {self.template_id[:8]}: {head}; parser {self.parser}; stops at {' '.join(self.stop_tokens) or 'nothing'}"
        ]
        for part in self.breaks:
            where = f", {part.where}" if part.where else ""
            lines.append(f"  {part.kind} ({part.case}){where}: {part.before!r} became {part.after!r}")
        lines += [f"  refused {reason}" for reason in self.refused]
        lines += [f"  warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)


def path_digest(conversation: Conversation) -> bytes:
    """`digest_ids` of the conversation's path, to be compared with what the engine says it saw (`Turn.digest`)."""
    return digest_ids(token_ids(conversation.path))


def check_template(folder: str | Path) -> TemplateReport:
    """Renders conversations of several kinds step by step and compares each step with the one before."""
    renderer = TemplateRenderer.from_folder(folder)
    breaks: list[TemplateBreak] = []
    refused: list[str] = []
    for case, messages, tools in _cases():
        try:
            breaks += _text_breaks(renderer, case, messages, tools) or _token_break(renderer, case, messages, tools)
        except UserError as error:
            refused.append(f"{case}: {error}")
    return TemplateReport(
        renderer.template_id,
        renderer.tokenizer_id,
        getattr(renderer.parser, "name", repr(renderer.parser)),
        tuple(renderer.decode([number]) for number in renderer.stop_ids),
        renderer.dialect,
        tuple(breaks),
        tuple(refused),
    )


def _cases() -> Iterator[tuple[str, list[Message], list[ToolSpec]]]:
    system, asked = Message("system", "Answer briefly."), Message("user", "Capital of Peru?")
    said, more = Message("assistant", "Lima."), Message("user", "And of Chile?")
    thought = Message("assistant", "Lima.", reasoning="Peru lies in South America.")
    call = Message("assistant", "", tool_calls=(ToolRequest("search", {"query": "Peru"}, "call_0"),))
    found = Message("tool", "Lima is the capital.", name="search", call_id="call_0")
    yield "chat", [asked, said, more, said], []
    yield "system", [system, asked, said, more, said], []
    yield "thinking", [asked, thought, more, thought], []
    yield "tools", [system, asked, call, found, said, more, call, found, said], [SEARCH]
    thinking_call = Message("assistant", "", reasoning="I must look it up.", tool_calls=call.tool_calls)
    yield "thinking with tools", [asked, thinking_call, found, thinking_call, found, thought, more, said], [SEARCH]


def _text_breaks(
    renderer: TemplateRenderer, case: str, messages: Sequence[Message], tools: Sequence[ToolSpec]
) -> list[TemplateBreak]:
    """Where a rendering is not the beginning of a later one; the first of each kind."""

    def text(count: int, prompt: bool) -> str:
        return renderer.text(renderer.open(messages[:count], tools), prompt=prompt)

    breaks: dict[str, TemplateBreak] = {}
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        prompted, answered = text(index, True), text(index + 1, False)
        answered = _up_to_stop(renderer, answered)
        pairs: list[tuple[Literal["prompt", "history"], str, str, int]] = [("prompt", prompted, answered, index)]
        for later in range(index + 2, len(messages) + 1):
            if later == len(messages) or messages[later].role == "assistant":
                pairs.append(("history", answered, text(later, True), later - 1))
        for kind, before, after, last in pairs:
            if not after.startswith(before) and kind not in breaks:
                place = shared_text(before, after)
                at = max(0, place - 20)
                changed = next((n for n in range(index) if place < len(_shown(text, n + 1))), index)
                how = "is not what its prompt began" if kind == "prompt" else f"changes when {_named(messages, last)} follows"
                where = f"{_named(messages, changed)} {how}"
                breaks[kind] = TemplateBreak(case, kind, before[at : at + 80], after[at : at + 80], where)
    return list(breaks.values())


def _shown(text: Callable[[int, bool], str], count: int) -> str:
    """The first messages alone; nothing where the template refuses them without the rest."""
    with capture():
        return text(count, False)
    return ""


def _named(messages: Sequence[Message], index: int) -> str:
    return f"message {index + 1} ({messages[index].role})"


def _up_to_stop(renderer: TemplateRenderer, text: str) -> str:
    """The text up to the end of its last turn, without what some templates write behind the last message alone."""
    stops = [renderer.decode([number]) for number in renderer.stop_ids[:1]]
    ends = [text.rfind(stop) + len(stop) for stop in stops if stop in text]
    return text[: max(ends)] if ends else text.rstrip()


def _token_break(
    renderer: TemplateRenderer, case: str, messages: Sequence[Message], tools: Sequence[ToolSpec]
) -> list[TemplateBreak]:
    """Whether the path, with every answer sampled as the template writes it, is what encoding everything at once gives."""
    first = next(index for index, message in enumerate(messages) if message.role == "assistant")
    conversation = renderer.open(messages[:first], tools)
    for index, message in enumerate(messages):
        if index < first:
            continue
        if message.role != "assistant":
            conversation.messages.append(message)
            continue
        renderer.extend(conversation)
        prompted = renderer.text(renderer.open(messages[:index], tools))
        answer = _up_to_stop(renderer, renderer.text(renderer.open(messages[: index + 1], tools), prompt=False))
        renderer.sampled(conversation, renderer.encode(answer[len(prompted) :]))
    renderer.extend(conversation)
    fresh = renderer.fresh(renderer.open(messages, tools))
    differing = count_deviation(conversation.path, fresh)
    return [TemplateBreak(case, "tokens", f"{len(fresh)} tokens", f"{differing} differ")] if differing else []
