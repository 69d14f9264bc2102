"""Messages as one template's text: whole, or only what stands behind a sampled turn.

What is added behind a sample is found by rendering the template around a stand-in for it (`SENTINEL`). Many templates write
that text the same whatever came before; then a conversation of two stub messages is rendered in place of the whole one. That
is checked on the first use of each kind of addition, against histories of several shapes and the real one, never assumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from agentrl.errors import UserError
from agentrl.rendering.compare import shared_text
from agentrl.rendering.contract import Conversation, Message, ToolRequest, ToolSpec
from agentrl.rendering.dialect import RENDER_ERRORS, probe
from agentrl.rendering.encoding import SENTINEL, Encoder
from agentrl.rendering.jinja import ChatTemplate
from agentrl.rendering.parsers import THINK, THOUGHT, CallWriter, Parser

Entry: TypeAlias = "dict[str, Any]"

KINDS = 1024


@dataclass(frozen=True, slots=True)
class Added:
    """Text behind a sampled turn. It begins with whatever closes the stand-in (`"}}`, ...), which a sample has itself."""

    text: str
    alone: str
    """The same if no message followed and nothing were to be sampled."""
    prompt: str
    """The generation prompt at the end of `text`."""
    marks: tuple[tuple[str, int], ...]
    """(role, end in `text`) of the end of the turn and of each new message."""


@dataclass(frozen=True, slots=True)
class _Scene:
    """What stands in front of the stand-in."""

    before: Sequence[Entry]
    tools: list[Entry] | None
    alone: str
    prompt: str


class Form:
    """One chat template, the dialect of its messages and the shield against forged tokens."""

    def __init__(
        self, default: ChatTemplate, with_tools: ChatTemplate, encoder: Encoder, parser: Parser, args: Mapping[str, Any]
    ) -> None:
        self.encoder = encoder
        self.dialect = probe(with_tools, args)
        self._default, self._with_tools = default, with_tools
        self._parser = parser
        self._args = args
        self._user: Entry = {"role": "user", "content": self.dialect.content("u")}
        self._said: Entry = {"role": "assistant", "content": self.dialect.content("a")}
        self._scenes: dict[tuple[object, ...], _Scene | None] = {}
        self._shielded: dict[tuple[int, ...], tuple[tuple[ToolSpec, ...], list[Entry]]] = {}
        """By the identities of the tools, which stay theirs while they are kept here."""

    def render(self, conversation: Conversation, count: int | None = None, *, prompt: bool) -> str:
        """The text of the first `count` messages (all), breaks included."""
        entries = self._entries(conversation.messages[:count])
        return self._call(entries, self._tools(conversation), self._merged(conversation), prompt)

    def marks(self, conversation: Conversation, text: str) -> list[tuple[str, int]]:
        """(role, end in the text) of each message whose end the template shows."""
        marks: list[tuple[str, int]] = []
        at = 0
        for count, message in enumerate(conversation.messages, 1):
            try:
                part = self.render(conversation, count, prompt=False)
            except UserError:
                continue  # some templates refuse a beginning, such as a system message alone; its text falls to the next
            shared = shared_text(part, text)
            if shared < len(part) and message.content:
                # Written otherwise as the last message than in the middle (thinking): what it says and its end, further on.
                ending = part[part.rfind(message.content) :]
                found = text.find(ending, at)
                shared = found + len(ending) if found >= 0 else shared
            at = max(at, shared)
            marks.append((message.role, at))
        return marks

    def behind(self, conversation: Conversation) -> Added:
        """What the template writes behind the last rendered message, an assistant's: `conversation.messages[rendered - 1]`."""
        messages, done = conversation.messages, conversation.rendered
        stub = self._stub(messages[done - 1])
        after = self._entries(messages[done:])
        args = self._merged(conversation)
        scene = self._scene(conversation, stub, after, args)
        text = self._tail(scene.before, stub, after, scene.tools, args, prompt=True)
        marks = [("assistant", shared_text(scene.alone, text))]
        for count in range(1, len(after)):
            part = self._tail(scene.before, stub, after[:count], scene.tools, args, prompt=False)
            marks.append((str(after[count - 1]["role"]), shared_text(part, text)))
        if after:
            end = len(text) - len(scene.prompt) if text.endswith(scene.prompt) else len(text)
            marks.append((str(after[-1]["role"]), end))
        return Added(text, scene.alone, scene.prompt, tuple(marks))

    def replaced(self, conversation: Conversation) -> tuple[str, str]:
        """The text that was rendered last without a sample following, and what must stand in its place, from the last
        assistant's message on."""
        done, messages = conversation.rendered, conversation.messages
        args, tools = self._merged(conversation), self._tools(conversation)
        at = next((index for index in range(done - 1, -1, -1) if messages[index].role == "assistant"), None)
        if at is None:
            old, new = self._entries(messages[:done]), self._entries(messages)
            return self._call(old, tools, args, True), self._call(new, tools, args, True)
        before, stub = self._entries(messages[:at]), self._stub(messages[at])
        old, new = self._entries(messages[at + 1 : done]), self._entries(messages[at + 1 :])
        return self._tail(before, stub, old, tools, args, prompt=True), self._tail(before, stub, new, tools, args, prompt=True)

    def end_of_turn(self) -> str:
        """The special token that the template writes behind an answer, or nothing."""
        tail = self._tail(
            [self._user], {**self._said, "content": self.dialect.content(SENTINEL)}, [], None, self._args, prompt=False
        )
        found = self.encoder.first_special(tail)
        return found[1] if found is not None and not tail[: found[0]].strip() else ""

    def _merged(self, conversation: Conversation) -> Mapping[str, Any]:
        return {**self._args, **conversation.template_args} if conversation.template_args else self._args

    def _tools(self, conversation: Conversation) -> list[Entry] | None:
        if not conversation.tools:
            return None
        key = tuple(map(id, conversation.tools))
        if key not in self._shielded:
            if len(self._shielded) >= KINDS:
                self._shielded.clear()
            shielded = [self.encoder.shield_json(tool.as_openai()) for tool in conversation.tools]
            self._shielded[key] = conversation.tools, shielded
        return self._shielded[key][1]

    def _entries(self, messages: Sequence[Message]) -> list[Entry]:
        entries: list[Entry] = []
        for message in self._in_known_roles(messages):
            if message.role == "assistant" and not self.dialect.holds(message):
                message = self._as_written(message)
            entries.append(self.dialect.template_message(message, self.encoder))
        return entries

    def _in_known_roles(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Roles that the template drops or refuses become the user's: instructions in front of the question, results joined."""
        if self.dialect.tool_role and self.dialect.system_role:
            return messages
        known: list[Message] = []
        joined = False  # whether the last one may take in the next: it was a tool's, or the system's
        for message in messages:
            foreign = (message.role == "tool" and not self.dialect.tool_role) or (
                message.role == "system" and not self.dialect.system_role
            )
            if joined and (foreign or message.role == "user"):
                known[-1] = Message("user", f"{known[-1].content}\n\n{message.content}")
                joined = foreign
            else:
                known.append(Message("user", message.content) if foreign else message)
                joined = foreign
        return known

    def _as_written(self, message: Message) -> Message:
        """An assistant message whose parts the template cannot render, as the text that the parser would read."""
        content = message.content
        if message.tool_calls:
            if not isinstance(self._parser, CallWriter):
                raise UserError(
                    f"this chat template cannot render the message's tool calls, and the parser {self._parser!r} has no "
                    "write(request); put the calls into the content, or use the parser 'hermes' or 'tags'"
                )
            written = [self._parser.write(request) for request in message.tool_calls]
            content = "\n".join([content, *written] if content else written)
        if message.reasoning:
            content = f"{THINK}\n{message.reasoning}\n{THOUGHT}\n\n{content}"
        return Message("assistant", content)

    def _call(self, entries: Sequence[Entry], tools: list[Entry] | None, args: Mapping[str, Any], prompt: bool) -> str:
        template = self._with_tools if tools else self._default
        try:
            return template(entries, tools, prompt=prompt, args=args)
        except RENDER_ERRORS as error:
            roles = " ".join(str(entry["role"]) for entry in entries)
            raise UserError(f"the chat template cannot render messages of the roles [{roles}]: {error}") from error

    def _tail(
        self,
        before: Sequence[Entry],
        stub: Entry,
        after: Sequence[Entry],
        tools: list[Entry] | None,
        args: Mapping[str, Any],
        *,
        prompt: bool,
    ) -> str:
        """The text behind the stub's sentinel."""
        text = self._call([*before, stub, *after], tools, args, prompt)
        at = text.rfind(SENTINEL)
        if at < 0:
            raise UserError(f"the chat template does not render what an assistant says; it ends {text[-200:]!r}")
        return text[at + len(SENTINEL) :]

    def _stub(self, message: Message) -> Entry:
        """An assistant message of the same shape, the sentinel last in what the model writes."""
        if not message.tool_calls or not self.dialect.holds(message):
            return {**self._said, "content": self.dialect.content(SENTINEL)}
        requests = [*message.tool_calls[:-1], replace(message.tool_calls[-1], arguments={"a": SENTINEL})]
        content = None if self.dialect.bare_content == "none" else ""
        return {"role": "assistant", "content": content, "tool_calls": self.dialect.template_calls(requests)}

    def _scene(self, conversation: Conversation, stub: Entry, after: Sequence[Entry], args: Mapping[str, Any]) -> _Scene:
        """The stub messages where they are known to do, else the real history."""
        first = conversation.messages[0]
        system = first.content if first.role == "system" else None
        shape = (len(stub.get("tool_calls", ())), tuple(entry["role"] for entry in after))
        key = (*shape, system, bool(conversation.tools), repr(args) if args else "")
        if key not in self._scenes:
            if len(self._scenes) >= KINDS:
                self._scenes.clear()
            self._scenes[key] = self._local_scene(conversation, stub, after, args)
        scene = self._scenes[key]
        if scene is not None:
            return scene
        tools = self._tools(conversation)
        try:
            return self._set(self._entries(conversation.messages[: conversation.rendered - 1]), stub, after, tools, args)
        except UserError:
            # The template refuses what came to pass, such as an answer where it wants a call. The path holds it anyway.
            return self._set([self._user], stub, after, tools, args)

    def _set(
        self, before: Sequence[Entry], stub: Entry, after: Sequence[Entry], tools: list[Entry] | None, args: Mapping[str, Any]
    ) -> _Scene:
        alone = self._tail(before, stub, [], tools, args, prompt=False)
        text = self._tail(before, stub, after, tools, args, prompt=True)
        closed = self._tail(before, stub, after, tools, args, prompt=False)
        return _Scene(before, tools, alone, text[len(closed) :] if text.startswith(closed) else "")

    def _local_scene(
        self, conversation: Conversation, stub: Entry, after: Sequence[Entry], args: Mapping[str, Any]
    ) -> _Scene | None:
        """Two stub messages, if the template writes the same behind every other history that it accepts."""
        tools = self._tools(conversation)
        try:
            scene = self._set([self._user], stub, after, None, args)
            text = self._tail([self._user], stub, after, None, args, prompt=True)
        except UserError:
            return None
        real = self._entries(conversation.messages[: conversation.rendered - 1])
        system = real[:1] if real and real[0]["role"] == "system" else []
        compared = 0
        for history in (real, *([*system, *turns] for turns in self._histories())):
            try:
                alone = self._tail(history, stub, [], tools, args, prompt=False)
                whole = self._tail(history, stub, after, tools, args, prompt=True)
            except UserError:
                continue
            compared += 1
            if (alone, whole) != (scene.alone, text):
                return None
        return scene if compared else None

    def _histories(self) -> Iterator[list[Entry]]:
        """What may stand before a sampled turn: a question, a finished exchange, rounds of tool calls."""
        yield [self._user]
        yield [self._user, self._said, self._user]
        if not self.dialect.tool_role:
            return
        call: Entry = dict(self._said)
        if self.dialect.calls:
            content = None if self.dialect.bare_content == "none" else ""
            requests = self.dialect.template_calls([ToolRequest("f", {"a": "b"}, "call_0")])
            call = {"role": "assistant", "content": content, "tool_calls": requests}
        result: Entry = {"role": "tool", "name": "f", "tool_call_id": self.dialect.call_id("call_0"), "content": "r"}
        yield [self._user, call, result]
        yield [self._user, call, result, self._said, self._user]
        yield [self._user, call, result, call, result]
