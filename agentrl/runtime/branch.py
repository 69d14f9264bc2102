"""Branches: where in a workflow something is asked for. Every task of a workflow is one.

A branch's path names the tasks from the root to it: each by its explicit name, else by its coroutine's name and ordinal among
that name. Nothing else enters it, no global counter and no id drawn at run time, so a path is the same in every process.
"""

from __future__ import annotations

import contextvars

_ESCAPED = str.maketrans({char: f"%{ord(char):02X}" for char in "%/#:~"})
"""What has a meaning in a path or a key."""


class Branch:
    """One line of execution of an episode: where the positions of its effects are counted."""

    __slots__ = ("_children", "_key", "_parent", "_position", "path")

    def __init__(self, path: str, parent: Branch | None = None, key: str = "") -> None:
        self.path = path
        self._parent = parent
        self._key = key
        self._children: dict[str, int] | None = None
        self._position = 0

    def next_position(self) -> int:
        """The position of the branch's next effect."""
        position = self._position
        self._position = position + 1
        return position

    def child(self, name: str | None, coroutine: str) -> Branch:
        """A task begun here: named explicitly, else by its coroutine's name and ordinal among that name."""
        key, path = self._next(name, coroutine)
        return Branch(path, self, key)

    def rename(self, name: str) -> None:
        """Takes an explicit name, as a task does right after it is made; too late once something was asked for here."""
        parent = self._parent
        if parent is None or self._position or self._children:
            return
        parent.take_back(self._key, self.path)
        self._key, self.path = parent._next(name, "")

    def take_back(self, key: str, path: str) -> None:
        """Frees the ordinal of a child that takes another name, if no other was given since."""
        assert self._children is not None
        last = self._children[key] - 1
        if path == f"{self.path}/{key[1:]}#{last}":
            self._children[key] = last

    def _next(self, name: str | None, coroutine: str) -> tuple[str, str]:
        children = self._children
        if children is None:
            children = self._children = {}
        key = f"#{coroutine}" if name is None else f"={name.translate(_ESCAPED)}"
        ordinal = children.get(key, 0)
        children[key] = ordinal + 1
        if name is None:
            return key, f"{self.path}/{key[1:]}#{ordinal}"
        return key, f"{self.path}/{key[1:]}~{ordinal}" if ordinal else f"{self.path}/{key[1:]}"


BRANCH: contextvars.ContextVar[Branch] = contextvars.ContextVar("agentrl_branch")
"""The branch of whatever runs that is no task: a callback."""
