"""Episodes from files into a store: each becomes a journal that folds to the same episode.

An import is whole or can be called again: before anything is written all ids are looked at, and what an import that was cut
off left behind is gone on with. A journal made here tells what came of an episode and not how to run it again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from agentrl.effect import Effect, EffectKey, digest_request
from agentrl.episode import Episode, Ledger, Parent, Sampling, Source, Turn, token_ids
from agentrl.errors import UserError
from agentrl.exchange.lines import to_line
from agentrl.exchange.row import SCHEMA, Entry
from agentrl.store.contract import EpisodeHead, EpisodeTail, Store
from agentrl.store.fold import fold

_FIRST = 1 << 40
"""Number of a journal's first effect: above every cut at which a fork of the original was made, for an imported fork brings
all its turns and shares none with its parent."""


_OF_A_TRAINING = re.compile(r"[se]\d{6}\.\d+\.\d+$")
"""Ids that a training gives: of batch and task, sampled or held out."""
_OTHERWISE = "give --rename PREFIX, or another store"


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of the episodes of a file."""

    taken: int
    known: int
    """Were in the store already, the same."""
    running: int
    """Had not ended when they were exported, and are left out."""


def import_episodes(
    store: Store,
    entries: Callable[[], Iterable[Entry]] | Iterable[Entry | Episode],
    *,
    source: Source | None = None,
    of_run: bool = False,
) -> Imported:
    """Puts episodes into a store that is open for writing; `flush` it before they are read.

    `entries` may be a function that reads them, called twice: then no more than one is held in memory. `source` stands in the
    place of each episode's own; `of_run` says that a training owns the store. `UserError`, and nothing is written, if an id is
    there already with another content, if it is one that the training will give itself, or if a fork comes without its parent.
    """
    kept: list[Entry] = [] if callable(entries) else [each if isinstance(each, Entry) else Entry.of(each) for each in entries]

    def all_entries() -> Iterator[Entry]:
        for entry in entries() if callable(entries) else kept:
            yield entry if source is None else _sourced(entry, source)

    known = {head.id for head in store.heads()}
    ended, running, same = set[str](), set[str](), set[str]()
    for entry in all_entries():
        name, episode = entry.episode.id, entry.episode
        if name in ended or name in running:
            raise UserError(f"the file holds episode {name!r} twice; nothing is imported")
        (running if episode.status == "running" else ended).add(name)
        if episode.status == "running":
            continue
        if of_run and name not in known and _OF_A_TRAINING.match(name):
            raise UserError(f"a training that goes on in this store would take episode {name!r} for its own: {_OTHERWISE}")
        _check(store, entry, ended, known)
        if name in known and store.tail(name) is not None:
            if _line(store.episode(name)) != _line(episode):
                raise UserError(f"the store holds another episode {name!r}; nothing is imported: {_OTHERWISE}")
            same.add(name)
    taken = 0
    for entry in all_entries():
        if entry.episode.status != "running" and entry.episode.id not in same:
            _write(store, entry, known)
            taken += 1
    return Imported(taken, len(same), len(running))


def _sourced(entry: Entry, source: Source) -> Entry:
    return replace(entry, head=replace(entry.head, source=source), episode=replace(entry.episode, source=source))


def _check(store: Store, entry: Entry, ended: set[str], known: set[str]) -> None:
    """`UserError` for an episode that no journal in this store could tell of."""
    name, parent = entry.episode.id, entry.episode.fork_of
    if parent is not None and parent not in ended:
        raise UserError(f"episode {name!r} is a fork of {parent!r}, which is not before it in the file; export both")
    if parent is not None and name not in known and parent in known and store.journal(parent)[0].issued < _FIRST:
        raise UserError(f"episode {name!r} is a fork of {parent!r}, which this store holds as it was sampled: {_OTHERWISE}")
    head, effects, tail = journal_of(entry)
    if _line(fold(head, effects, tail)) != _line(entry.episode):
        raise UserError(
            f"episode {name!r} contradicts itself (does its ledger count what its turns hold?), so no journal tells of it; "
            "give the file as it was exported"
        )


def _line(episode: Episode) -> str:
    return to_line(Entry.of(episode))


def _write(store: Store, entry: Entry, known: set[str]) -> None:
    head, effects, tail = journal_of(entry)
    there = 0
    if head.id in known:  # begun by an import that was cut off, or by something else
        written = store.journal(head.id)
        there = len(written)
        if [_told(effect) for effect in written] != [_told(effect) for effect in effects[:there]]:
            raise UserError(
                f"the store holds an unfinished episode {head.id!r} of its own; give --rename PREFIX, or another store"
            )
    for digest, data in entry.blobs.items():
        if store.put_blob(data) != digest:
            raise UserError(f"episode {head.id!r}: the bytes of blob {digest} have another digest; the file is damaged")
    store.begin(head)
    store.append(head.id, effects[there:])
    store.finish(head.id, tail)


def _told(effect: Effect) -> tuple[EffectKey, str, bytes, int]:
    return effect.key, effect.kind, effect.request, effect.issued


def journal_of(entry: Entry) -> tuple[EpisodeHead, tuple[Effect, ...], EpisodeTail]:
    """A head, effects and a tail that `fold` makes the episode of."""
    episode = entry.episode
    effects = [_note("imported", {"schema": SCHEMA}, 0, digest_request(_line(episode)))]
    effects[0] = replace(effects[0], costs=dict(episode.ledger.costs))
    shared = _shared(episode)
    for place, turn in enumerate(episode.turns):
        sampled = _sampled(turn, len(effects))
        effects.append(replace(sampled, completed=-1) if place < shared else sampled)  # -1: not this episode's to pay
    for agent, reason in episode.stops:
        effects.append(_note("stop", {"agent": agent, "reason": reason}, len(effects)))
    for effect in _paid_besides(episode):
        effects.append(replace(effect, key=EffectKey("imported", 0, len(effects)), issued=_FIRST + len(effects),
                               completed=_FIRST + len(effects)))  # fmt: skip
    tail = EpisodeTail(
        status=episode.status,
        output=episode.output,
        rewards=episode.rewards,
        metrics=episode.metrics,
        ledger=episode.ledger,
        failure=episode.failure,
        stops=episode.stops,
        seconds=episode.seconds,
    )
    return entry.head, tuple(effects), tail


def _shared(episode: Episode) -> int:
    """How many turns, from the first on, a fork's ledger leaves out: its parent has paid for them."""
    drawn = [max(0, len(turn.sampled_ids) - turn.forced) for turn in episode.turns]
    left = sum(drawn) - episode.ledger.sampled_tokens
    count = 0
    while episode.fork_of is not None and left > 0 and count < len(drawn):
        left -= drawn[count]
        count += 1
    return count


def _sampled(turn: Turn, number: int) -> Effect:
    return Effect(
        key=EffectKey(turn.branch, 0, number), kind="model", name=turn.policy, request=digest_request(turn.id),
        note="imported", issued=_FIRST + number, completed=_FIRST + number, at=turn.ended, turn=turn,
    )  # fmt: skip


def _note(name: str, value: dict[str, str], number: int, request: bytes = b"") -> Effect:
    return Effect(
        key=EffectKey("imported", 0, number), kind="note", name=name, request=request or digest_request(name, value),
        note="imported", issued=_FIRST + number, completed=_FIRST + number, at=0.0, value=value,
    )  # fmt: skip


def _paid_besides(episode: Episode) -> Iterator[Effect]:
    """Effects that stand for what was paid and is in no turn: lost attempts, probes, tool calls."""
    paid, turns = episode.ledger, episode.turns[_shared(episode) :]
    shown = Ledger(
        prompt_tokens=sum((turn.parent.kept if turn.parent else 0) + len(turn.context_ids) for turn in turns),
        cached_tokens=sum(turn.cached_tokens for turn in turns),
        model_calls=len(turns),
    )
    base = _note("paid", {}, 0)
    for number in range(paid.model_calls - shown.model_calls):
        first = number == 0
        lost = Turn(
            id=f"lost {number}", agent="", index=0, policy="", versions=(), branch="imported", predecessor=None,
            parent=Parent("", paid.prompt_tokens - shown.prompt_tokens) if first else None, context_ids=token_ids([]),
            sampled_ids=token_ids(np.zeros(paid.lost_tokens if first else 0)), logprobs=np.zeros(0, np.float32),
            logprobs_at="before_mask", finish="abort", sampling=Sampling(), seed=0, text="",
            cached_tokens=paid.cached_tokens - shown.cached_tokens if first else 0,
        )  # fmt: skip
        yield replace(base, kind="model", name="lost", status="lost", value=None, turn=lost)
    if paid.probe_tokens:
        yield replace(base, kind="score", name="probes", value={"ids": [0] * paid.probe_tokens})
    for _ in range(paid.tool_calls):
        yield replace(base, kind="tool", name="told in the turn", value=None)
