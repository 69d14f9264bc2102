"""What the reference policy earned on a task: sampled once, kept in the run's store, copied into every later group of the task.

A measurement is an episode with source "reference" whose group sampled it; a copy is a fork of all of it, so that it is stored
once, pays for nothing and stands in its group like any other member: groups read back from the store are those that credit saw.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

from agentrl.episode import FINISHED, Episode, Ledger
from agentrl.errors import UserError
from agentrl.experiment import Experiment
from agentrl.rendering.contract import Renderer
from agentrl.store.contract import EpisodeHead, Store


class OneAtATime:
    """A lock for each name, first come first served; it is forgotten when nobody has or wants it."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def __call__(self, name: str) -> asyncio.Lock:
        """The lock of this name."""
        return self._locks.setdefault(name, asyncio.Lock())


class References:
    """Which episodes of a run measured which task."""

    def __init__(self, heads: Iterable[EpisodeHead]) -> None:
        self._measured: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for head in heads:
            self.add(head)

    @staticmethod
    def key(head: EpisodeHead) -> str:
        """Equal for members that measure the same."""
        return json.dumps([head.task, head.member, head.split], sort_keys=True)

    def add(self, head: EpisodeHead) -> None:
        """Takes note of an episode that measures a task."""
        if head.source == "reference" and head.fork_of is None:
            self._measured[self.key(head)].setdefault(head.id, head.step)

    def find(self, head: EpisodeHead, refresh: int, store: Store) -> Episode | None:
        """The finished episode that measured what `head` is to measure; None = it has to be sampled. The store is flushed."""
        for name, step in self._measured[self.key(head)].items():
            if name != head.id and (not refresh or step // refresh == head.step // refresh):
                tail = store.tail(name)
                if tail is not None and tail.status in FINISHED:
                    return store.episode(name)
        return None


def copy_of(store: Store, head: EpisodeHead, of: Episode) -> Episode:
    """Stores `head` as an episode that shares all of `of`, its rewards too, and gives it."""
    tail = store.tail(of.id)
    assert tail is not None
    cut = 1 + max(max(effect.issued, effect.completed) for effect in store.journal(of.id))
    head = replace(head, fork_of=of.id, fork_cut=cut)
    store.begin(head)
    store.finish(head.id, replace(tail, ledger=Ledger()))
    return replace(of, id=head.id, group=head.group, seed=head.seed, fork_of=of.id, fork_cut=cut, ledger=Ledger())


def check_tokenizers(experiment: Experiment[Any, Any], renderers: Mapping[str, Renderer]) -> None:
    """`UserError` for a reference that reads other tokens than the policies in whose place it plays."""
    reference = experiment.reference
    assert reference is not None
    own = renderers[reference.name].tokenizer_id
    for policy in experiment.by_name.values():
        theirs = renderers[policy.name].tokenizer_id
        if not policy.frozen and theirs != own:
            raise UserError(
                f"the reference {reference.name!r} has another tokenizer ({own}) than policy {policy.name!r} ({theirs}), in "
                f"whose place it plays; give a reference of the same family, --set reference.model=FOLDER"
            )
