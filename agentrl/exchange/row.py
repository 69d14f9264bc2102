"""An episode as one row of plain values, and back: the same fields in every file format (`docs/record.md`).

A `Form` says how a format holds what has no plain type: free JSON, numbers that may not be finite, arrays, bytes. Nothing is
lost: token ids, log-probs to the bit, and all else that the store keeps of an episode.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol, get_args

import numpy as np

from agentrl.episode import (
    EMPTY_MAP,
    Candidate,
    Column,
    Episode,
    Failure,
    FloatArray,
    IntArray,
    Ledger,
    Parent,
    Probe,
    Reward,
    Sampling,
    Segment,
    Source,
    State,
    Status,
    ToolCall,
    Turn,
    Version,
    VersionSpan,
)
from agentrl.errors import UserError
from agentrl.store.contract import EpisodeHead
from agentrl.workflow import task_as_json

if TYPE_CHECKING:
    import numpy.typing as npt

SCHEMA = "agentrl.episode/1"
"""Name and version of the row; every row carries it in its field `schema`."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """An episode as it goes into a file and comes out: with what its head alone knows, and the media of its turns."""

    head: EpisodeHead
    episode: Episode
    blobs: Mapping[str, bytes] = EMPTY_MAP
    """By digest."""
    messages: tuple[Mapping[str, Any], ...] | None = None
    """The conversation as chat messages, for tools that train on these. It is written and never read back."""

    @classmethod
    def of(cls, episode: Episode) -> Entry:
        """An episode by itself, of a group that nothing more is known of."""
        head = EpisodeHead(
            id=episode.id, group=episode.group, member=0, wanted=1, task=task_as_json(episode.task), seed=episode.seed,
            workflow=episode.workflow, source=episode.source, split="imported", fork_of=episode.fork_of,
            fork_cut=episode.fork_cut,
        )  # fmt: skip
        return cls(head, episode)


class Form(Protocol):
    """How a file format holds a value; each pair is one-to-one."""

    def json(self, value: Any) -> Any: ...
    def of_json(self, held: Any) -> Any: ...
    def number(self, value: float) -> Any: ...
    def of_number(self, held: Any) -> float: ...
    def ids(self, ids: IntArray) -> Any: ...
    def of_ids(self, held: Any) -> IntArray: ...
    def floats(self, values: FloatArray) -> Any: ...
    def of_floats(self, held: Any) -> FloatArray: ...
    def data(self, data: bytes) -> Any: ...
    def of_data(self, held: Any) -> bytes: ...


_PAID = tuple(field.name for field in fields(Ledger) if field.name != "costs")


def to_row(entry: Entry, form: Form) -> Row:
    """The row of an episode."""
    head, episode = entry.head, entry.episode
    ledger: Row = {name: getattr(episode.ledger, name) for name in _PAID} | {"costs": form.json(episode.ledger.costs)}
    row: Row = {
        "schema": SCHEMA,
        "id": episode.id,
        "group": episode.group,
        "member": head.member,
        "wanted": head.wanted,
        "split": head.split,
        "step": head.step,
        "created": form.number(head.created),
        "task": form.json(task_as_json(episode.task)),
        "seed": episode.seed,
        "workflow": episode.workflow,
        "source": episode.source,
        "status": episode.status,
        "output": form.json(episode.output),
        "reward": form.number(episode.reward),
        "rewards": [_reward(reward, form) for reward in episode.rewards],
        "metrics": form.json(episode.metrics),
        "ledger": ledger,
        "failure": _plain(episode.failure),
        "stops": [{"agent": agent, "reason": reason} for agent, reason in episode.stops],
        "fork_of": episode.fork_of,
        "fork_cut": episode.fork_cut,
        "fork_forced": form.json({key: list(ids) for key, ids in head.fork_forced.items()}),
        "seconds": form.number(episode.seconds),
        "turns": [_turn(turn, form) for turn in episode.turns],
        "blobs": [{"digest": digest, "data": form.data(data)} for digest, data in entry.blobs.items()],
    }
    if entry.messages is not None:
        row["messages"] = [_message(message, form) for message in entry.messages]
    return row


def of_row(row: Mapping[str, Any], form: Form) -> Entry:
    """The inverse of `to_row`. `UserError` for another schema; KeyError, TypeError or ValueError for what is no such row."""
    check_schema(row.get("schema"))
    for name, kind in (("status", Status), ("source", Source)):
        if row[name] not in get_args(kind):
            raise ValueError(f"{name} {row[name]!r} is none of {', '.join(get_args(kind))}")
    paid = {name: int(row["ledger"][name]) for name in _PAID}
    task = form.of_json(row["task"])
    shared: Row = {name: row[name] for name in ("id", "group", "seed", "workflow", "source", "fork_of", "fork_cut")}
    episode = Episode(
        **shared,
        task=task,
        status=row["status"],
        turns=tuple(_of_turn(turn, form) for turn in row["turns"]),
        output=form.of_json(row["output"]),
        rewards=_of_rewards(row["rewards"], form),
        metrics=form.of_json(row["metrics"]),
        ledger=Ledger(**paid, costs=form.of_json(row["ledger"]["costs"])),
        failure=None if row["failure"] is None else Failure(**row["failure"]),
        stops=tuple((stop["agent"], stop["reason"]) for stop in row["stops"]),
        seconds=form.of_number(row["seconds"]),
    )
    head = EpisodeHead(
        **shared,
        task=task,
        **{name: row[name] for name in ("member", "wanted", "split", "step")},
        created=form.of_number(row["created"]),
        fork_forced={key: tuple(ids) for key, ids in form.of_json(row["fork_forced"]).items()},
    )
    return Entry(head, episode, {blob["digest"]: form.of_data(blob["data"]) for blob in row["blobs"]})


def check_schema(found: Any) -> None:
    """`UserError` unless it is the schema that is read here."""
    if found == SCHEMA:
        return
    if isinstance(found, str) and found.partition("/")[0] == SCHEMA.partition("/")[0]:
        do = f"it is of {'a newer' if found > SCHEMA else 'an older'} agentrl; export it again with this one"
    else:
        do = "export it with `agentrl export`"
    has = "no field `schema`" if found is None else f"schema {found!r}"
    raise UserError(f"it has {has}, and {SCHEMA!r} is wanted; {do}")


def _message(message: Mapping[str, Any], form: Form) -> Row:
    """The arguments of calls are free JSON, as all else that a tool is given."""
    if "tool_calls" not in message:
        return dict(message)
    calls = [
        call | {"function": call["function"] | {"arguments": form.json(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


# --- turns -------------------------------------------------------------------------------------------------------------------
def _plain(value: Any) -> Row | None:
    """A dataclass of plain values as a row."""
    return None if value is None else {field.name: getattr(value, field.name) for field in fields(value)}


def _reward(reward: Reward, form: Form) -> Row:
    return {**asdict(reward), "value": form.number(reward.value)}


def _of_rewards(rows: Iterable[Row], form: Form) -> tuple[Reward, ...]:
    return tuple(Reward(row["name"], form.of_number(row["value"]), row["turn"], row["agent"], row["after"]) for row in rows)


def _version(version: Version) -> Row:
    return {"lineage": version.lineage, "policy": version.policy, "step": version.step, "digest": version.digest}


def _of_version(row: Row) -> Version:
    return Version(row["lineage"], row["policy"], row["step"], row["digest"])


_COPIED = (
    "id", "agent", "index", "policy", "predecessor", "branch", "logprobs_at", "finish", "seed", "text", "kind", "forced",
    "tokenizer", "template", "observation", "valid", "cached_tokens", "untrained",
)  # fmt: skip
"""Fields of a turn that are plain values."""


def _turn(turn: Turn, form: Form) -> Row:
    sampling = turn.sampling
    return {
        **{name: getattr(turn, name) for name in _COPIED},
        "versions": [
            {**_version(span.version), "start": span.start, "end": span.end, "kv": span.kv} for span in turn.versions
        ],
        "parent": _plain(turn.parent),
        "context_ids": form.ids(turn.context_ids),
        "sampled_ids": form.ids(turn.sampled_ids),
        "logprobs": form.floats(turn.logprobs),
        "sampling": {
            "temperature": form.number(sampling.temperature), "top_k": sampling.top_k, "top_p": form.number(sampling.top_p),
            "max_tokens": sampling.max_tokens, "stop_ids": list(sampling.stop_ids), "stop": list(sampling.stop),
        },
        "digest": turn.digest.hex(),
        "segments": [{"role": each.role, "start": each.start, "end": each.end} for each in turn.segments],
        "candidate": _plain(turn.candidate),
        "tool_calls": [_call(call, form) for call in turn.tool_calls],
        "state": _plain(turn.state),
        "rewards": [_reward(reward, form) for reward in turn.rewards],
        "probes": [_probe(probe, form) for probe in turn.probes],
        "columns": [_column(key, column, form) for key, column in turn.columns.items()],
        "media": list(turn.media),
        "started": form.number(turn.started),
        "ended": form.number(turn.ended),
        "costs": form.json(turn.costs),
    }  # fmt: skip


def _of_turn(row: Row, form: Form) -> Turn:
    drawn = row["sampling"]
    sampling = Sampling(
        form.of_number(drawn["temperature"]), drawn["top_k"], form.of_number(drawn["top_p"]), drawn["max_tokens"],
        tuple(drawn["stop_ids"]), tuple(drawn["stop"]),
    )  # fmt: skip
    return Turn(
        **{name: row[name] for name in _COPIED},
        versions=tuple(VersionSpan(_of_version(span), span["start"], span["end"], span["kv"]) for span in row["versions"]),
        parent=None if row["parent"] is None else Parent(**row["parent"]),
        context_ids=form.of_ids(row["context_ids"]),
        sampled_ids=form.of_ids(row["sampled_ids"]),
        logprobs=form.of_floats(row["logprobs"]),
        sampling=sampling,
        digest=bytes.fromhex(row["digest"]),
        segments=tuple(Segment(each["role"], each["start"], each["end"]) for each in row["segments"]),
        candidate=None if row["candidate"] is None else Candidate(**row["candidate"]),
        tool_calls=tuple(_of_call(call, form) for call in row["tool_calls"]),
        state=None if row["state"] is None else State(**row["state"]),
        rewards=_of_rewards(row["rewards"], form),
        probes=tuple(_of_probe(probe, form) for probe in row["probes"]),
        columns={column["key"]: _of_column(column, form) for column in row["columns"]},
        media=tuple(row["media"]),
        started=form.of_number(row["started"]),
        ended=form.of_number(row["ended"]),
        costs=form.of_json(row["costs"]),
    )


def _call(call: ToolCall, form: Form) -> Row:
    return {
        "name": call.name, "arguments": form.json(call.arguments), "status": call.status, "output": call.output,
        "started": form.number(call.started), "ended": form.number(call.ended), "attempts": call.attempts,
        "truncated": call.truncated, "call_id": call.call_id, "data": form.json(call.data),
    }  # fmt: skip


def _of_call(row: Row, form: Form) -> ToolCall:
    read: Row = {name: form.of_json(row[name]) for name in ("arguments", "data")}
    read |= {name: form.of_number(row[name]) for name in ("started", "ended")}
    return ToolCall(**(row | read))


def _probe(probe: Probe, form: Form) -> Row:
    return {
        "name": probe.name, "position": probe.position, "ids": form.ids(probe.ids), "logprobs": form.floats(probe.logprobs),
        "version": None if probe.version is None else _version(probe.version),
        "value": None if probe.value is None else form.number(probe.value),
    }  # fmt: skip


def _of_probe(row: Row, form: Form) -> Probe:
    version = None if row["version"] is None else _of_version(row["version"])
    value = None if row["value"] is None else form.of_number(row["value"])
    return Probe(row["name"], row["position"], form.of_ids(row["ids"]), form.of_floats(row["logprobs"]), version, value)


def _column(key: str, column: Column, form: Form) -> Row:
    """Float32 of one dimension as numbers, any other array as its bytes."""
    values = column.values
    numbers = values.dtype == np.dtype("<f4") and values.dtype.str == "<f4" and values.ndim == 1
    return {
        "key": key, "name": column.name, "at": column.at, "dtype": values.dtype.str, "shape": list(values.shape),
        "values": form.floats(values) if numbers else None, "data": None if numbers else form.data(values.tobytes()),
    }  # fmt: skip


def _of_column(row: Row, form: Form) -> Column:
    if row["values"] is not None:
        return Column(row["name"], form.of_floats(row["values"]), row["at"])
    kind, data = np.dtype(row["dtype"]), form.of_data(row["data"])
    values: npt.NDArray[Any] = np.frombuffer(data, kind) if data else np.zeros(0, kind)
    return Column(row["name"], values.reshape(row["shape"]), row["at"])
