"""Records as rows: JSON documents, heads, tails, learner steps, later rewards. `turns.py` has the turns.

A document is JSON text; one over `LARGE` bytes lives in the blob table and its column holds the 32-byte digest instead, which
SQLite's typing tells apart (text or blob). SQLite keeps no nan: a NULL in a float column is read as nan.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from agentrl.episode import Failure, Ledger, Reward, Version
from agentrl.errors import UserError
from agentrl.store.contract import EpisodeHead, EpisodeTail, StoredRow, StoredStep

LARGE = 64 * 1024
"""Bytes of JSON from which a document becomes a blob."""

Row: TypeAlias = tuple[Any, ...]
Document: TypeAlias = "str | bytes"
Blobs: TypeAlias = "list[Row]"
"""Rows for the blob table that an encoder adds to: (digest, data)."""
Load: TypeAlias = Callable[[bytes], bytes]
"""Gives a blob by its 32-byte digest."""


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no JSON")


# check_circular costs; a circle ends in RecursionError, which encode_json names
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False, default=_plain).encode
_encode_ascii = json.JSONEncoder(separators=(",", ":"), check_circular=False, default=_plain).encode


def encode_json(value: Any) -> str:
    """Compact JSON that can be bound as text. `UserError` if `value` is none."""
    try:
        text = _encode(value)
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:  # half a surrogate pair has no UTF-8, but it has an escape
                text = _encode_ascii(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"not JSON: {error}; give dicts, lists, strings, numbers, booleans and None") from error
    return text


_scan = json.JSONDecoder().raw_decode


def decode_json(text: str) -> Any:
    """The inverse of `encode_json`; `json.loads` without what it does for text that may be bytes or begin with blanks."""
    value, end = _scan(text)
    if end != len(text):
        raise ValueError(f"JSON of {len(text)} characters ends at {end}")
    return value


def digest_blob(data: bytes) -> bytes:
    """The 32 bytes by which a blob is known."""
    return hashlib.blake2b(data, digest_size=32).digest()


def encode_document(value: Any, blobs: Blobs) -> Document:
    """JSON text, or the digest of a blob added to `blobs` if the text is large."""
    text = encode_json(value)
    if len(text) * 4 <= LARGE:
        return text
    data = text.encode()
    if len(data) <= LARGE:
        return text
    digest = digest_blob(data)
    blobs.append((digest, data))
    return digest


def decode_document(document: Document, load: Load) -> Any:
    """The inverse of `encode_document`."""
    return decode_json(load(document).decode() if isinstance(document, bytes) else document)


def decode_documents(documents: Sequence[Document], load: Load) -> list[Any]:
    """`decode_document` of each, in half the time: they are parsed as one array."""
    texts = [load(document).decode() if isinstance(document, bytes) else document for document in documents]
    values: list[Any] = decode_json(f"[{','.join(texts)}]")
    if len(values) != len(documents):
        raise ValueError(f"{len(documents)} documents hold {len(values)} values")
    return values


def encode_text(text: str) -> str | bytes:
    """A string as a text column takes it; one with half a surrogate pair goes as bytes."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def decode_text(text: str | bytes) -> str:
    """The inverse of `encode_text`."""
    return text if isinstance(text, str) else text.decode("utf-8", "surrogatepass")


def encode_name(text: str, what: str) -> str:
    """A string that is looked up by SQL; `UserError` if it has no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{what} {text!r} is no valid text ({error}); give a name without half surrogate pairs") from None
    return text


def encode_int(value: int, what: str) -> int:
    """An integer that SQLite can hold; `UserError` otherwise."""
    number = int(value)
    if not -(1 << 63) <= number < 1 << 63:
        raise UserError(f"{what} = {value} does not fit into 64 bits")
    return number


def decode_float(value: float | None) -> float:
    """A float column; SQLite stores nan as NULL."""
    return math.nan if value is None else value


def encode_rewards(rewards: Sequence[Reward]) -> list[list[Any]]:
    """Rewards as JSON."""
    return [[reward.name, reward.value, reward.turn, reward.agent] for reward in rewards]


def decode_rewards(rewards: Sequence[Sequence[Any]]) -> tuple[Reward, ...]:
    """The inverse of `encode_rewards`."""
    return tuple(Reward(name, value, turn, agent) for name, value, turn, agent in rewards)


def encode_version(version: Version) -> str:
    """A version as JSON; its `str` is for people and not always one-to-one."""
    return encode_json([version.lineage, version.policy, version.step, version.digest])


def decode_version(text: str) -> Version:
    """The inverse of `encode_version`."""
    return Version(*json.loads(text))


def encode_head(seq: int, head: EpisodeHead, blobs: Blobs) -> Row:
    """A row of `episode`."""
    rest: dict[str, Any] = {"seed": head.seed, "workflow": head.workflow}
    if head.fork_forced:
        rest["forced"] = {key: list(ids) for key, ids in head.fork_forced.items()}
    return (
        seq,
        encode_name(head.id, "episode id"),
        encode_name(head.group, "group"),
        encode_int(head.member, "member"),
        encode_int(head.wanted, "wanted"),
        encode_name(head.split, "split"),
        encode_int(head.step, "step"),
        None if head.fork_of is None else encode_name(head.fork_of, "fork_of"),
        encode_int(head.fork_cut, "fork_cut"),
        float(head.created),
        encode_json(rest),
        None if head.task is None else encode_document(head.task, blobs),
        head.source,
    )


HEAD_COLUMNS = "seq, id, group_id, member, wanted, split, step, fork_of, fork_cut, created, head, task, source"


def decode_head(row: Row, load: Load) -> EpisodeHead:
    """The inverse of `encode_head`."""
    _, name, group, member, wanted, split, step, fork_of, fork_cut, created, rest, task, source = row
    more = decode_json(rest)
    return EpisodeHead(
        id=name,
        group=group,
        member=member,
        wanted=wanted,
        task=None if task is None else decode_document(task, load),
        seed=more["seed"],
        workflow=more["workflow"],
        source=source,
        split=split,
        step=step,
        fork_of=fork_of,
        fork_cut=fork_cut,
        fork_forced={key: tuple(ids) for key, ids in more["forced"].items()} if "forced" in more else {},
        created=decode_float(created),
    )


_LEDGER = ("sampled_tokens", "lost_tokens", "probe_tokens", "prompt_tokens", "cached_tokens", "tool_calls", "model_calls")


def encode_tail(seq: int, tail: EpisodeTail, blobs: Blobs) -> Row:
    """A row of `tail`."""
    body = {
        "output": tail.output,
        "rewards": encode_rewards(tail.rewards),
        "metrics": tail.metrics,
        "ledger": {name: getattr(tail.ledger, name) for name in _LEDGER} | {"costs": tail.ledger.costs},
        "failure": None if tail.failure is None else [tail.failure.fault, tail.failure.message],
        "stops": tail.stops,
    }
    return (seq, tail.status, float(tail.seconds), encode_document(body, blobs))


def decode_tail(row: Row, later: Sequence[Reward], load: Load) -> EpisodeTail:
    """The inverse of `encode_tail`, with the rewards that were given after the end."""
    _, status, seconds, document = row
    body = decode_document(document, load)
    return EpisodeTail(
        status=status,
        output=body["output"],
        rewards=(*decode_rewards(body["rewards"]), *later),
        metrics=body["metrics"],
        ledger=Ledger(**body["ledger"]),
        failure=None if body["failure"] is None else Failure(*body["failure"]),
        stops=tuple((agent, reason) for agent, reason in body["stops"]),
        seconds=decode_float(seconds),
    )


def encode_reward(seq: int, episode: int, reward: Reward, at: float) -> Row:
    """A row of `reward`; `at` is Unix time."""
    texts = (None if text is None else encode_text(text) for text in (reward.turn, reward.agent))
    return (seq, episode, at, encode_text(reward.name), float(reward.value), *texts)


REWARD_COLUMNS = "name, value, turn, agent"


def decode_reward(row: Row) -> Reward:
    """From `REWARD_COLUMNS`."""
    name, value, turn, agent = row
    texts = (None if text is None else decode_text(text) for text in (turn, agent))
    return Reward(decode_text(name), decode_float(value), *texts)


def encode_step(seq: int, step: StoredStep, blobs: Blobs) -> tuple[Row, list[Row]]:
    """A row of `step` and its rows of `step_row`. The digest covers all of them."""
    policy, number = encode_name(step.policy, "policy"), encode_int(step.step, "step")
    stats = encode_json(step.stats)
    state = None if step.state is None else encode_document(step.state, blobs)
    rows: list[Row] = []
    digest = hashlib.blake2b(digest_size=32)
    for part in (
        encode_version(step.before).encode(),
        stats.encode(),
        state if isinstance(state, bytes) else str(state).encode(),
    ):
        digest.update(len(part).to_bytes(8, "little") + part)
    for n, row in enumerate(step.rows):
        turns = encode_json([row.turns, [len(part) for part in row.advantages]])
        packed = b"".join(row.advantages)
        names = (encode_text(row.episode), encode_text(row.leaf))
        rows.append((seq, n, *names, turns, packed, float(row.weight)))
        for part in (encode_json([row.episode, row.leaf, float(row.weight)]).encode(), turns.encode(), packed):
            digest.update(len(part).to_bytes(8, "little") + part)
    return (seq, policy, number, digest.digest(), encode_version(step.before), stats, state), rows


def decode_step(step: Row, rows: Sequence[Row], load: Load) -> StoredStep:
    """From (policy, step, version, stats, state) and rows of (episode, leaf, turns, advantages, weight)."""
    policy, number, version, stats, state = step
    return StoredStep(
        policy=policy,
        step=number,
        rows=tuple(_decode_step_row(row) for row in rows),
        before=decode_version(version),
        stats=json.loads(stats),
        state=None if state is None else decode_document(state, load),
    )


def _decode_step_row(row: Row) -> StoredRow:
    episode, leaf, body, packed, weight = row
    turns, sizes = decode_json(body)
    advantages: list[bytes] = []
    start = 0
    for size in sizes:
        advantages.append(packed[start : start + size])
        start += size
    return StoredRow(decode_text(episode), decode_text(leaf), tuple(turns), tuple(advantages), decode_float(weight))
