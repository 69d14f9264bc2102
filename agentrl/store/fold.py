"""A journal, read as an episode.

The journal is the only record; an episode is what its effects say. Turns come from model calls; what other effects say of
a turn (tool calls, rewards, probes, state, whether it was chosen) is joined to it here.

Values of the effects that speak of turns:

    tool    {"turn", "arguments", "status", "output", "started", "ended", "attempts", "truncated", "call_id", "data"}
    reward  {"name", "value", "turn", "agent"}; "later" if it was given behind the end
    score   {"turn", "probe", "position", "ids", "logprobs", "version", "value"}
    note    name "state" {"turn", "before", "after", "action", "raw"}; "observation" {"turn", "text"}; "valid" {"turn"};
            "candidate" {"turn", "set", "index", "chosen"}; "untrained" {"turn", "why"};
            "stop" {"agent", "reason"}; "metric" {"name", "value"}

A turn that called tools has a canonical action, and the state behind it is the one in which the next turn of its path began;
a note "state" stands in the place of both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import attrgetter, itemgetter
from typing import Any

import numpy as np

from agentrl.effect import Effect, digest_request
from agentrl.episode import (
    Candidate,
    Episode,
    Ledger,
    Probe,
    Reward,
    State,
    StopReason,
    ToolCall,
    Turn,
    Version,
    token_ids,
)
from agentrl.store.contract import EpisodeHead, EpisodeTail


def fold(
    head: EpisodeHead, effects: Sequence[Effect], tail: EpisodeTail | None, *, task: Any = None, fresh: bool = False
) -> Episode:
    """The episode that a journal tells of; without a tail its status is "running". `task` stands in for the head's JSON.

    `fresh`: nobody else holds the turns of `effects`, see `Told.episode`.
    """
    told = Told()
    for effect in effects:
        if effect.status in ("ok", "error"):
            told.add(effect.kind, effect.name, effect.value, effect.status == "ok")
            if effect.turn is not None:
                told.turns.append((effect.issued, effect.turn))
    seconds = tail.seconds if tail else max((effect.at for effect in effects), default=0.0)
    own = [effect for effect in effects if effect.completed >= head.fork_cut]  # what a fork shares, its parent has paid
    return told.episode(head, tail, ledger_of(own), seconds, task=task, fresh=fresh)


class Told:
    """What the effects of one episode tell, as it is gathered."""

    __slots__ = ("metrics", "rewards", "said", "stops", "turns")

    def __init__(self) -> None:
        self.turns: list[tuple[int, Turn]] = []
        """With the number at which each was issued."""
        self.said: dict[str, _Said] = {}
        """By the turn that it is said of."""
        self.rewards: list[Reward] = []
        self.stops: list[tuple[str, StopReason]] = []
        self.metrics: dict[str, float] = {}

    def add(self, kind: str, name: str, value: Any, ok: bool = True) -> None:
        """Takes in an effect that is no model call."""
        if kind == "reward":
            inside = value["turn"] is None and self.turns and "later" not in value
            after = self.turns[-1][1].id if inside else None
            self.reward(Reward(value["name"], value["value"], value["turn"], value["agent"], after))
        elif kind == "note" and name == "stop":
            self.stops.append((value["agent"], value["reason"]))
        elif kind == "note" and name == "metric":
            self.metrics[value["name"]] = value["value"]
        elif ok and isinstance(value, dict) and "turn" in value:
            self._of(str(value["turn"])).add(kind, name, value)

    def reward(self, reward: Reward) -> None:
        """Takes in a reward, which stands on its turn if it has one."""
        (self.rewards if reward.turn is None else self._of(reward.turn).rewards).append(reward)

    def episode(
        self,
        head: EpisodeHead,
        tail: EpisodeTail | None,
        ledger: Ledger,
        seconds: float,
        *,
        task: Any = None,
        fresh: bool = False,
    ) -> Episode:
        """All of it as an episode. `fresh`: nobody else holds the turns, so they are filled in place instead of copied."""
        if tail is not None:
            for reward in tail.rewards:
                self.reward(reward)
        self.turns.sort(key=itemgetter(0))
        after = {turn.parent.turn: turn.state.before for _, turn in reversed(self.turns) if turn.parent and turn.state}
        return Episode(
            id=head.id,
            group=head.group,
            task=head.task if task is None else task,
            seed=head.seed,
            workflow=head.workflow,
            source=head.source,
            status=tail.status if tail else "running",
            turns=tuple([self._joined(turn, fresh, after) for _, turn in self.turns]),
            output=tail.output if tail else None,
            rewards=tuple(self.rewards),
            metrics={**self.metrics, **tail.metrics} if tail else self.metrics,
            ledger=ledger,
            failure=tail.failure if tail else None,
            stops=tuple(self.stops),
            fork_of=head.fork_of,
            fork_cut=head.fork_cut,
            seconds=seconds,
        )

    def _of(self, turn: str) -> _Said:
        if turn not in self.said:
            self.said[turn] = _Said()
        return self.said[turn]

    def _joined(self, turn: Turn, fresh: bool, after: Mapping[str, str]) -> Turn:
        if turn.id not in self.said:
            return turn
        more = self.said[turn.id]
        changes = more.fields
        if more.tools:
            changes["tool_calls"] = tools = (*turn.tool_calls, *sorted(more.tools, key=_call_id))
            if turn.state is not None and "state" not in changes:
                behind = after.get(turn.id, "")
                changes["state"] = State(turn.state.before, behind, _action(tools), turn.state.raw)
        if more.rewards:
            changes["rewards"] = (*turn.rewards, *more.rewards)
        if more.probes:
            changes["probes"] = (*turn.probes, *more.probes)
        if not fresh:
            return replace(turn, **changes)
        for name, value in changes.items():
            object.__setattr__(turn, name, value)
        return turn


def _action(calls: Sequence[ToolCall]) -> str:
    """The calls whatever they were written like: equal ones have equal keys."""
    return digest_request([[call.name, dict(call.arguments)] for call in calls]).hex()


_call_id = attrgetter("call_id")


class _Said:
    """What other effects say of one turn."""

    __slots__ = ("fields", "probes", "rewards", "tools")

    def __init__(self) -> None:
        self.tools: list[ToolCall] = []
        self.rewards: list[Reward] = []
        self.probes: list[Probe] = []
        self.fields: dict[str, Any] = {}

    def add(self, kind: str, name: str, value: dict[str, Any]) -> None:
        match kind, name:
            case "tool", _:
                self.tools.append(
                    ToolCall(
                        name=name,
                        arguments=value["arguments"],
                        status=value["status"],
                        output=value["output"],
                        started=value["started"],
                        ended=value["ended"],
                        attempts=value["attempts"],
                        truncated=value["truncated"],
                        call_id=value["call_id"],
                        data=value["data"],
                    )
                )
            case "score", _:
                version = Version.parse(value["version"]) if value["version"] else None
                logprobs = np.array(value["logprobs"], np.float32)
                ids = token_ids(value["ids"])
                self.probes.append(Probe(value["probe"], value["position"], ids, logprobs, version, value["value"]))
            case "note", "state":
                self.fields["state"] = State(value["before"], value["after"], value["action"], value["raw"])
            case "note", "observation":
                self.fields["observation"] = value["text"]
            case "note", "valid":
                self.fields["valid"] = False
            case "note", "candidate":
                self.fields["candidate"] = Candidate(value["set"], value["index"], value["chosen"])
            case "note", "untrained":
                self.fields["untrained"] = value["why"]
            case _:
                pass


def ledger_of(effects: Sequence[Effect]) -> Ledger:
    """Everything paid for, lost effects included."""
    sampled = lost = probe = prompt = cached = tools = models = 0
    costs: dict[str, float] = {}
    for effect in effects:
        for name, cost in effect.costs.items():
            costs[name] = costs[name] + cost if name in costs else cost
        turn = effect.turn
        if turn is not None:
            models += 1
            drawn = max(0, len(turn.sampled_ids) - turn.forced)
            if effect.status == "lost":
                lost += drawn
            else:
                sampled += drawn
            kept = turn.parent.kept if turn.parent else 0
            prompt += kept + len(turn.context_ids)
            cached += turn.cached_tokens
        elif effect.kind == "score" and effect.status != "intent":
            probe += len(effect.value["ids"]) if isinstance(effect.value, dict) else 0
        elif effect.kind == "tool" and effect.status != "intent":
            tools += 1
    return Ledger(sampled, lost, probe, prompt, cached, tools, models, costs)
