"""Demonstrations: episodes of elsewhere, walked through by this run's workflow, so that forks may begin inside them.

The workflow runs as it does live, and what it asks of the world is answered from the demonstration: a model call with the
recorded tokens, all of them forced, so that none is ever trained or paid; a tool call or `team.effect` with what it gave. What
comes of it is an episode of this run's store with source "demonstration", in no group of the training. A workflow that asks
for something else than the demonstration holds cannot be led through it: that is said, and the episode is not used.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from agentrl.effect import Effect, EffectKind, derive_seed, digest_request
from agentrl.engines.contract import GenerateRequest, Generation
from agentrl.engines.recorded import Recorded
from agentrl.episode import FINISHED, Episode, digest_ids
from agentrl.errors import ReplayDiverged, UserError, recreate_error
from agentrl.exchange.files import read_entries
from agentrl.store.sqlite import SQLiteStore
from agentrl.team import Seat
from agentrl.workflow import Ask, Asked, Outcome, World

logger = logging.getLogger(__name__)

SPLIT = "demonstration"
"""Of demonstrations in the store of a run."""


def begins_inside(episode: Episode) -> bool:
    """Whether an episode of a training was forked from a demonstration."""
    return episode.fork_of is not None and episode.fork_of.startswith(f"{SPLIT}-")


@dataclass(frozen=True)
class Demonstration:
    """An episode of elsewhere, and what its tool calls and effects gave."""

    episode: Episode
    results: Mapping[bytes, tuple[tuple[bool, Any], ...]]
    """By the request's digest, in order: whether it went well, and the value or the error."""

    @cached_property
    def digests(self) -> list[bytes]:
        """The whole path of each turn."""
        return [digest_ids(self.episode.path(turn)) for turn in self.episode.turns]

    def behind(self, record: Iterable[Effect]) -> Demonstration:
        """What is left to recite when so much of it is on record already."""
        left = {request: list(given) for request, given in self.results.items()}
        for effect in record:
            if effect.kind in ("tool", "effect") and effect.status in ("ok", "error"):
                del left[effect.request][0]
        return replace(self, results={request: tuple(given) for request, given in left.items()})

    def name(self, code_hash: str) -> str:
        """Equal for equal demonstrations that are led through equal code."""
        return f"{SPLIT}-{digest_request(self.episode.id, code_hash, *self.digests).hex()[:16]}"


class Demonstrations:
    """The finished episodes of a run, a store or an exported file, by task. `UserError` if there is no such thing."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._store = _store_of(self.path)
        self._by_task: dict[str, list[tuple[str, float]]] = {}
        self._of_file: dict[str, Episode] = {}
        self._warned = False
        for episode in self._all():
            if episode.status in FINISHED and episode.turns:
                reward = sum(reward.value for part in (episode, *episode.turns) for reward in part.rewards)
                self._by_task.setdefault(_key(episode.task), []).append((episode.id, reward))

    def __len__(self) -> int:
        """Of how many tasks there is one."""
        return len(self._by_task)

    def of(self, task: Any, least: float | None) -> list[str]:
        """Names of the task's demonstrations; `task` is JSON."""
        known = self._by_task.get(_key(task), ())
        return [name for name, reward in known if least is None or reward >= least]

    def draw(self, task: Any, least: float | None, seed: int) -> Demonstration | None:
        """One of them."""
        names = self.of(task, least)
        return self._read(Random(derive_seed(seed, SPLIT)).choice(names)) if names else None

    def usable(self, demonstration: Demonstration, led: Episode) -> bool:
        """Whether the workflow was led through all of it; if not, says why, the first time as a warning."""
        if led.status in FINISHED and [digest_ids(led.path(turn)) for turn in led.turns] == demonstration.digests:
            return True
        changed = "" if led.workflow == demonstration.episode.workflow else " (its code has changed since)"
        why = led.failure.message if led.failure else f"it ended after {len(led.turns)} turns, as {led.status}"
        logger.log(
            logging.INFO if self._warned else logging.WARNING,
            "%s of %s cannot be walked through by this workflow%s, so its task has plain rollouts: %s",
            demonstration.episode.id, self.path, changed, why,
        )  # fmt: skip
        self._warned = True
        return False

    def _all(self) -> Iterator[Episode]:
        if self._store is None:
            for entry in read_entries(self.path):
                self._of_file[entry.episode.id] = entry.episode
                yield entry.episode
        else:
            with SQLiteStore(self._store, read_only=True) as store:
                yield from (episode for _, episode in store.skim())

    def _read(self, name: str) -> Demonstration:
        if self._store is None:
            return Demonstration(self._of_file[name], _told(self._of_file[name]))
        with SQLiteStore(self._store, read_only=True) as store:
            return Demonstration(store.episode(name), _given(store.journal(name)))


class Recital:
    """The world of an episode that is led through a demonstration."""

    def __init__(self, world: World, demonstration: Demonstration) -> None:
        self._world = world
        self._turns = demonstration.episode.by_id
        self._digests = dict(zip(self._turns, demonstration.digests, strict=True))
        self._results = {request: deque(given) for request, given in demonstration.results.items()}

    @property
    def episode(self) -> str:
        return self._world.episode

    def record(self, kind: EffectKind, name: str, value: Any) -> None:
        self._world.record(kind, name, value)

    def seed(self, *parts: str | int) -> int:
        return self._world.seed(*parts)

    def now(self) -> float:
        return self._world.now()

    async def perform(self, ask: Ask) -> Outcome:
        """Asks as it would be asked live, and has it answered from the demonstration."""

        async def run(asked: Asked) -> Outcome:
            return await self._turn(ask, asked) if ask.kind == "model" else self._result(ask)

        return await self._world.perform(replace(ask, run=run, abandon=None, outlives=False, retries=0))

    async def _turn(self, ask: Ask, asked: Asked) -> Outcome:
        """The recorded turn, forced."""
        turn = self._turns.get(asked.id)
        if turn is None:
            raise ReplayDiverged(f"it asks for a model call ({ask.note}) that the demonstration does not hold")
        outcome = await ask.run(replace(asked, forced=tuple(turn.sampled_ids.tolist())))
        again = outcome.turn
        assert again is not None
        if again.digest != self._digests[turn.id]:
            raise ReplayDiverged(
                f"its prompt is not the demonstration's ({ask.note}): instructions, tools, template or tokenizer have changed"
            )
        return Outcome(turn=replace(again, finish=turn.finish))

    def _result(self, ask: Ask) -> Outcome:
        left = self._results.get(ask.request)
        if not left:
            raise ReplayDiverged(f"it asks for {ask.kind} {ask.name} {ask.note}, which the demonstration does not hold")
        went_well, value = left.popleft()
        if not went_well:
            raise recreate_error(value)
        return Outcome(value)


@dataclass(frozen=True, slots=True)
class Reciter(Recorded):
    """An engine that draws nothing: it gives back the tokens that it is forced to."""

    async def generate(self, request: GenerateRequest) -> Generation:
        nothing = np.full(len(request.forced), np.nan, np.float32)
        return Generation(request.forced, nothing, (), "stop", digest_ids(request.prompt, request.forced))


def reciting(seat: Seat) -> Seat:
    """The seat of a role whose turns are recited: all that is asked of its engine is the same, and nothing is drawn."""
    return replace(seat, engine=Reciter(seat.engine.info.max_context), retries=0, columns=())


def _store_of(path: Path) -> Path | None:
    """The file of a run's store, or of a store; None for what was exported."""
    if not path.exists():
        raise UserError(f"there is no {path} to take demonstrations from; give a run, a store or an exported file")
    if path.is_dir():
        return path / "store.db" if (path / "store.db").is_file() else None
    with path.open("rb") as file:
        return path if file.read(16).startswith(b"SQLite format 3") else None


def _key(task: Any) -> str:
    return json.dumps(task, sort_keys=True)


def _given(journal: tuple[Effect, ...]) -> dict[bytes, tuple[tuple[bool, Any], ...]]:
    """Results of a journal's tool calls and effects, in the order in which they were asked for."""
    found: defaultdict[bytes, list[tuple[bool, Any]]] = defaultdict(list)
    for effect in sorted(journal, key=lambda effect: effect.issued):
        if effect.kind in ("tool", "effect") and effect.status in ("ok", "error"):
            found[effect.request].append((effect.status == "ok", effect.value))
    return {request: tuple(results) for request, results in found.items()}


def _told(episode: Episode) -> dict[bytes, tuple[tuple[bool, Any], ...]]:
    """The same as far as an episode without its journal tells it: calls of tools, without the states that they named."""
    found: defaultdict[bytes, list[tuple[bool, Any]]] = defaultdict(list)
    for turn in episode.turns:
        for call in turn.tool_calls:
            said = json.dumps(dict(call.arguments))
            value = {"turn": turn.id, "arguments": dict(call.arguments), "status": call.status, "output": call.output}
            value |= {"started": call.started, "ended": call.ended, "attempts": call.attempts, "truncated": call.truncated}
            value |= {"call_id": call.call_id, "data": dict(call.data), "state": ""}
            found[digest_request(turn.id, call.name, said.encode(), "")].append((True, value))
    return {request: tuple(results) for request, results in found.items()}
