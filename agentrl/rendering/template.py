"""The renderer for any Hugging Face chat template: whole once, then only what is added."""

from __future__ import annotations

import hashlib
import json
import logging
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from agentrl.episode import IntArray, Segment, token_ids
from agentrl.errors import UserError
from agentrl.rendering.compare import classify_break, count_deviation, shared_ids, shared_text
from agentrl.rendering.contract import Conversation, Message, Parsed, Rendered, ToolSpec
from agentrl.rendering.encoding import BREAK, Encoder
from agentrl.rendering.folder import ModelFolder, read_folder
from agentrl.rendering.form import Added, Form
from agentrl.rendering.jinja import ChatTemplate
from agentrl.rendering.parsers import PARSERS, THINK, Parser, detect_parser

log = logging.getLogger(__name__)

USAGE = "agentrl-1"
"""Changes when this package turns the same template and messages into other ids."""


class TemplateRenderer:
    """Messages <-> tokens by a chat template; see `agentrl.rendering.contract.Renderer`.

    `history="append"`: the path is what was sampled and shown, for ever. `"faithful"`: each `extend` renders all messages
    again and keeps the path up to the first token that differs, as a server that re-renders every request would.
    `clock` is what templates that write today's date read.
    """

    def __init__(
        self,
        folder: ModelFolder,
        *,
        history: Literal["append", "faithful"] = "append",
        parser: Parser | str | None = None,
        template_args: Mapping[str, Any] | None = None,
        measure_deviation: bool = False,
        clock: Callable[[], datetime] = datetime.now,
    ) -> None:
        if history not in ("append", "faithful"):
            raise UserError(f"history must be 'append' or 'faithful', got {history!r}")
        args = dict(template_args or {})
        default = ChatTemplate(folder.templates["default"], folder.special_tokens, clock)
        with_tools = default
        if "tool_use" in folder.templates:
            with_tools = ChatTemplate(folder.templates["tool_use"], folder.special_tokens, clock)
        literals = default.literals + "\0" + with_tools.literals
        self.history = history
        self.measure_deviation = measure_deviation
        self.tokenizer_id = folder.tokenizer_id
        parts = [USAGE, history, json.dumps([args, dict(folder.special_tokens)], sort_keys=True, default=str)]
        identity = "\0".join([*parts, default.source, with_tools.source])
        self.template_id = hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
        self._tokenizer = folder.tokenizer
        self.parser = _choose_parser(parser, default.source + with_tools.source, folder)
        draft = Form(default, with_tools, Encoder(folder.tokenizer, literals, folder.stop_ids), self.parser, args)
        ending = folder.tokenizer.token_to_id(draft.end_of_turn())
        stops: list[int] = [*([] if ending is None else [ending]), *folder.stop_ids]
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys(stops))
        self._encoder = Encoder(folder.tokenizer, literals, self.stop_ids)
        self._form = Form(default, with_tools, self._encoder, self.parser, args)
        self.dialect = self._form.dialect
        if parser is None and self.dialect.calls and self.parser is PARSERS["tags"]:
            log.warning("the chat template writes tool calls in a format that agentrl does not know; pass parser= to read them")

    @classmethod
    def from_folder(
        cls,
        path: str | Path,
        *,
        history: Literal["append", "faithful"] = "append",
        parser: Parser | str | None = None,
        template_args: Mapping[str, Any] | None = None,
        measure_deviation: bool = False,
    ) -> TemplateRenderer:
        """The renderer of a model folder; the parser is found by the template's markers unless given, by value or name."""
        folder = read_folder(path)
        return cls(folder, history=history, parser=parser, template_args=template_args, measure_deviation=measure_deviation)

    def open(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), **template_args: Any) -> Conversation:
        """A conversation of which nothing is rendered yet."""
        return Conversation(list(messages), tuple(tools), template_args=template_args)

    def encode(self, text: str) -> IntArray:
        """Plain text to ids, no template, special tokens recognised."""
        return token_ids(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: IntArray | Sequence[int]) -> str:
        """The text of the ids, special tokens included."""
        numbers = ids.tolist() if isinstance(ids, np.ndarray) else ids
        return self._tokenizer.decode(numbers, skip_special_tokens=False)

    def sampled(self, conversation: Conversation, ids: IntArray) -> Parsed:
        """Takes a sampled turn into the path as it is, and reads it. `Parsed.raw` is all of it, stop token included."""
        if conversation.rendered != len(conversation.messages):
            missing = len(conversation.messages) - conversation.rendered
            raise UserError(f"{missing} messages are not in the path yet; call extend before sampling")
        numbers: list[int] = ids.tolist()
        stopped = bool(numbers) and numbers[-1] in self.stop_ids
        raw = self.decode(numbers)
        body = self.decode(numbers[:-1]) if stopped else raw
        thinking = self.decode(conversation.path[-8:]).rstrip().endswith(THINK)
        parsed = replace(self.parser(THINK + body if thinking else body, conversation.tools), raw=raw)
        message = Message("assistant", parsed.text, tool_calls=parsed.tool_calls, reasoning=parsed.reasoning)
        if parsed.error or not self.dialect.holds(message):
            message = Message("assistant", body)
        conversation.path.extend(numbers)
        conversation.messages.append(message)
        conversation.rendered += 1
        return parsed

    def extend(self, conversation: Conversation) -> Rendered:
        """Renders the messages that are not yet in the path, and the generation prompt; moves the path on.

        Raises `UserError` if the template refuses the messages.
        """
        path = conversation.path
        if not path:
            rendered = self._whole(conversation)
        elif self.history == "faithful":
            rendered = self._again(conversation)
        else:
            rendered = self._behind(conversation)
        del path[rendered.kept :]
        path.extend(rendered.ids.tolist())
        conversation.rendered = len(conversation.messages)
        if self.measure_deviation:
            rendered = replace(rendered, deviation=count_deviation(path, self.fresh(conversation)))
        return rendered

    def text(self, conversation: Conversation, *, prompt: bool = True) -> str:
        """What the template alone makes of all messages."""
        return self._form.render(conversation, prompt=prompt).replace(BREAK, "")

    def fresh(self, conversation: Conversation, *, prompt: bool = True) -> list[int]:
        """The ids of `text`: the path of a conversation in which nothing was sampled."""
        return self._encoder.encode(self._form.render(conversation, prompt=prompt))[0]

    def _whole(self, conversation: Conversation) -> Rendered:
        text = self._form.render(conversation, prompt=True)
        ids, starts = self._encoder.encode(text)
        marks = [*self._form.marks(conversation, text), ("generation", len(text))]
        return Rendered(0, token_ids(ids), _segments(marks, starts, len(text)))

    def _again(self, conversation: Conversation) -> Rendered:
        """All messages by the template; the path stays up to the first token that differs."""
        path = conversation.path
        text = self._form.render(conversation, prompt=True)
        ids, starts = self._encoder.encode(text)
        kept = shared_ids(path, ids)
        broken = ""
        if kept < len(path) - self._pending(conversation):
            cut = path[-1] not in self.stop_ids and conversation.messages[conversation.rendered - 1].role == "assistant"
            broken = classify_break(self.decode(path), text.replace(BREAK, ""), cut)
        marks = [*self._form.marks(conversation, text), ("generation", len(text))]
        segments = _segments(marks, starts, len(text))
        moved = [Segment(part.role, max(part.start, kept) - kept, part.end - kept) for part in segments if part.end > kept]
        return Rendered(kept, token_ids(ids[kept:]), tuple(moved), broken)

    def _pending(self, conversation: Conversation) -> int:
        """Tokens of a generation prompt at the end of the path behind which nothing was sampled."""
        done = conversation.rendered
        if conversation.messages[done - 1].role == "assistant":
            return 0
        prompted = self._form.render(conversation, done, prompt=True)
        closed = self._form.render(conversation, done, prompt=False)
        ids, _ = self._encoder.encode(prompted[shared_text(closed, prompted) :])
        return len(ids) if conversation.path[-len(ids) :] == ids else 0

    def _behind(self, conversation: Conversation) -> Rendered:
        """Only what the template writes behind the sampled turn that ends the path."""
        path, done = conversation.path, conversation.rendered
        if conversation.messages[done - 1].role != "assistant":
            return self._instead(conversation)
        added = self._form.behind(conversation)
        if path[-1] not in self.stop_ids and self._ends_with(path, added.prompt):
            return self._instead(conversation)
        begin = self._end_of_sample(added, path[-1])
        text = added.text[begin:]
        ids, starts = self._encoder.encode(text, after=path[-1])
        marks = [(role, end - begin) for role, end in added.marks]
        return Rendered(len(path), token_ids(ids), _segments([*marks, ("generation", len(text))], starts, len(text)))

    def _end_of_sample(self, added: Added, last: int) -> int:
        """Where that begins which the sample lacks: its end of turn, or what follows that if the sample has one."""
        text, alone, stopped = added.text, added.alone, last in self.stop_ids
        found = self._encoder.first_stop(alone)
        if found is not None and text.startswith(alone[: found[0]]):
            ending = self._encoder.first_stop(text[found[0] :])
            if ending is not None and ending[0] == 0:
                return found[0] + (ending[1] if stopped else 0)
            return len(alone[: found[0]].rstrip())
        # No end-of-turn token: what closes the stand-in goes, white space stays, as it separates the messages.
        begin = len(alone[: added.marks[0][1]].rstrip())
        # Some models stop by opening the next message themselves (GLM: <|user|>, <|observation|>).
        opened = self._encoder.special.get(last, "") if stopped else ""
        return begin + len(opened) if opened and text.startswith(opened, begin) else begin

    def _ends_with(self, path: Sequence[int], text: str) -> bool:
        ids, _ = self._encoder.encode(text)
        return bool(ids) and list(path[-len(ids) :]) == ids

    def _instead(self, conversation: Conversation) -> Rendered:
        """Messages came before anything was sampled: the generation prompt, and what else must give way, is taken back."""
        path = conversation.path
        old, new = self._form.replaced(conversation)
        shared = shared_text(old, new)
        gone = old[shared:].replace(BREAK, "")
        longest = len(self._encoder.encode(gone)[0]) + 8
        for count in range(min(longest, len(path)) + 1):
            kept = len(path) - count
            popped = self.decode(path[kept:]) if count else ""
            if popped.endswith(gone):
                text = popped[: len(popped) - len(gone)] + new[shared:]
                ids, starts = self._encoder.encode(text, after=path[kept - 1] if kept else None)
                return Rendered(kept, token_ids(ids), _segments([("context", len(text))], starts, len(text)))
        return self._again(conversation)


def _choose_parser(parser: Parser | str | None, source: str, folder: ModelFolder) -> Parser:
    if parser is None:
        return detect_parser(source, [token.content for token in folder.tokenizer.get_added_tokens_decoder().values()])
    if not isinstance(parser, str):
        return parser
    if parser not in PARSERS:
        raise UserError(f"parser must be one of {', '.join(PARSERS)} or a callable, got {parser!r}")
    return PARSERS[parser]


def _segments(marks: Sequence[tuple[str, int]], starts: Sequence[int], length: int) -> tuple[Segment, ...]:
    """Spans of text, given by role and end, as spans of tokens; a token that crosses an end belongs to what follows."""
    segments: list[Segment] = []
    begin = 0
    for role, end in marks:
        index = bisect_left(starts, end)
        if end < length and index and (index == len(starts) or starts[index] != end):
            index -= 1
        if index > begin:
            segments.append(Segment(role, begin, index))
            begin = index
    return tuple(segments)
