"""What a reward transform is: a group in, the same group with other rewards out."""

from __future__ import annotations

from typing import Protocol

from agentrl.episode import Group


class RewardTransform(Protocol):
    """A frozen dataclass with its own numbers as fields.

    It sees a whole group, lost members included, and changes nothing but rewards, of episodes and of turns. The stored record
    keeps them as they were given. It may put a stored episode with source "replay" in a member's place.
    """

    def __call__(self, group: Group) -> Group: ...
