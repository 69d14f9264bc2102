"""A journal, read as an episode.

The journal is the only record; an episode is what its effects say. Turns come from model calls; what other effects say of
a turn (tool calls, rewards, probes, state, whether it was chosen) is joined to it here.

Values of the effects that speak of turns:

    tool    {"turn", "arguments", "status", "output", "started", "ended", "attempts", "truncated", "call_id", "data"}
    reward  {"name", "value", "turn", "agent"}
    score   {"turn", "probe", "position", "ids", "logprobs", "version", "value"}
    note    name "state" {"turn", "before", "after", "action", "raw"}; "observation" {"turn", "text"}; "valid" {"turn"};
            "candidate" {"turn", "set", "index", "chosen"}; "untrained" {"turn", "why"};
            "stop" {"agent", "reason"}; "metric" {"name", "value"}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from agentrl.effect import Effect
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


def fold(head: EpisodeHead, effects: Sequence[Effect], tail: EpisodeTail | None, *, task: Any = None) -> Episode:
    """The episode that a journal tells of; without a tail its status is "running". `task` stands in for the head's JSON."""
    live = [effect for effect in effects if effect.status in ("ok", "error")]
    said: dict[str, _Said] = {}
    rewards: list[Reward] = []
    stops: list[tuple[str, StopReason]] = []
    metrics: dict[str, float] = {}
    for effect in live:
        value = effect.value
        if effect.kind == "reward":
            reward = Reward(value["name"], value["value"], value["turn"], value["agent"])
            if reward.turn is None:
                rewards.append(reward)
            else:
                said.setdefault(reward.turn, _Said()).rewards.append(reward)
        elif effect.kind == "note" and effect.name == "stop":
            stops.append((value["agent"], value["reason"]))
        elif effect.kind == "note" and effect.name == "metric":
            metrics[value["name"]] = value["value"]
        elif effect.status == "ok" and isinstance(value, dict) and "turn" in value:
            said.setdefault(str(value["turn"]), _Said()).add(effect)
    turns = sorted((effect for effect in live if effect.turn is not None), key=lambda effect: effect.issued)
    if tail is not None:
        for reward in tail.rewards:
            if reward.turn is None:
                rewards.append(reward)
            else:
                said.setdefault(reward.turn, _Said()).rewards.append(reward)
        metrics |= tail.metrics
    return Episode(
        id=head.id,
        group=head.group,
        task=head.task if task is None else task,
        seed=head.seed,
        workflow=head.workflow,
        source=head.source,
        status=tail.status if tail else "running",
        turns=tuple(_joined(effect.turn, said) for effect in turns if effect.turn is not None),
        output=tail.output if tail else None,
        rewards=tuple(rewards),
        metrics=metrics,
        ledger=ledger_of(effects),
        failure=tail.failure if tail else None,
        stops=tuple(stops),
        fork_of=head.fork_of,
        fork_cut=head.fork_cut,
        seconds=tail.seconds if tail else max((effect.at for effect in effects), default=0.0),
    )


class _Said:
    """What other effects say of one turn."""

    __slots__ = ("fields", "probes", "rewards", "tools")

    def __init__(self) -> None:
        self.tools: list[ToolCall] = []
        self.rewards: list[Reward] = []
        self.probes: list[Probe] = []
        self.fields: dict[str, Any] = {}

    def add(self, effect: Effect) -> None:
        value = effect.value
        match effect.kind, effect.name:
            case "tool", name:
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


def _joined(turn: Turn, said: dict[str, _Said]) -> Turn:
    more = said.get(turn.id)
    if more is None:
        return turn
    tools = (*turn.tool_calls, *sorted(more.tools, key=lambda call: call.call_id))
    rewards, probes = (*turn.rewards, *more.rewards), (*turn.probes, *more.probes)
    return replace(turn, tool_calls=tools, rewards=rewards, probes=probes, **more.fields)


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
