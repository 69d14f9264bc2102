"""A turn as two columns: `turn`, JSON of what is known of it, and `tokens`, its arrays packed end to end.

Ids take 2 bytes when all are below 65536, else 3 (4 for what no vocabulary has); log-probs are float32 as they are, nan
payloads included. What repeats from turn to turn (agent, policy, sampling, tokenizer ... and versions) is written once, in
`shared`, and referred to by number. A field at its default is left out. docs/store.md has the table of the short keys.

Order in `tokens`: context ids, sampled ids, log-probs, columns, probes (ids, log-probs), digest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from agentrl.episode import (
    EMPTY_IDS,
    EMPTY_LOGPROBS,
    Candidate,
    Column,
    FloatArray,
    IntArray,
    Parent,
    Probe,
    Sampling,
    Segment,
    State,
    ToolCall,
    Turn,
    Version,
    VersionSpan,
    token_ids,
)
from agentrl.errors import UserError
from agentrl.store.codec import Row, decode_rewards, decode_version, encode_json, encode_rewards, encode_version

if TYPE_CHECKING:
    import numpy.typing as npt

_INT32 = np.dtype(np.int32)
_FLOAT32 = np.dtype(np.float32)


class Interned:
    """The write side of `shared`: numbers for what repeats. `fresh` are rows that the next entry must carry to the file."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.fresh: list[Row] = []
        self._frames: dict[tuple[Any, ...], int] = {}
        self._versions: dict[Version, int] = {}
        known = Known(rows)
        self._next = 1 + max((*known.frames, *known.versions), default=0)
        for number, frame in known.frames.items():
            self._frames[frame] = number
        for number, version in known.versions.items():
            self._versions[version] = number

    def frame(self, turn: Turn) -> int:
        """The number of what `turn` has in common with others of its agent."""
        frame = (turn.agent, turn.policy, turn.tokenizer, turn.template, turn.logprobs_at, turn.kind, turn.sampling)
        number = self._frames.get(frame)
        if number is None:
            sampling = turn.sampling
            drawn = [
                sampling.temperature,
                sampling.top_k,
                sampling.top_p,
                sampling.max_tokens,
                sampling.stop_ids,
                sampling.stop,
            ]
            number = self._add("frame", encode_json([*frame[:-1], drawn]))
            self._frames[frame] = number
        return number

    def version(self, version: Version) -> int:
        """The number of a version."""
        number = self._versions.get(version)
        if number is None:
            number = self._add("version", encode_version(version))
            self._versions[version] = number
        return number

    def _add(self, kind: str, body: str) -> int:
        number = self._next
        self._next += 1
        self.fresh.append((number, kind, body))
        return number


class Known:
    """The read side of `shared`: what the numbers stand for."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.frames: dict[int, tuple[Any, ...]] = {}
        self.versions: dict[int, Version] = {}
        self.learn(rows)

    def learn(self, rows: Iterable[Row]) -> None:
        """Takes in rows of (id, kind, body)."""
        for number, kind, body in rows:
            if kind == "version":
                self.versions[number] = decode_version(body)
            else:
                *frame, (temperature, top_k, top_p, max_tokens, stop_ids, stop) = json.loads(body)
                self.frames[number] = (*frame, Sampling(temperature, top_k, top_p, max_tokens, tuple(stop_ids), tuple(stop)))


def _pack_ids(ids: IntArray) -> tuple[int, bytes]:
    if ids.dtype != _INT32 or ids.ndim != 1:
        raise UserError(f"token ids are {ids.dtype} of shape {ids.shape}; make them with token_ids(), int32 of one dimension")
    if not len(ids):
        return 2, b""
    top = int(np.maximum.reduce(np.ascontiguousarray(ids).view(np.uint32)))  # negative ids count as huge
    if top < 1 << 16:
        return 2, ids.astype("<u2").tobytes()
    if top < 1 << 24:
        return 3, ids.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    return 4, ids.astype("<i4").tobytes()


def _pack_floats(values: FloatArray) -> bytes:
    if values.dtype != _FLOAT32 or values.ndim != 1:
        raise UserError(f"log-probs are {values.dtype} of shape {values.shape}; give float32 of one dimension")
    return values.astype("<f4", copy=False).tobytes()


def _pack_column(key: str, column: Column) -> tuple[list[Any], bytes]:
    values = column.values
    if values.dtype.kind not in "biufcSUmM":
        raise UserError(
            f"column {key!r} has dtype {values.dtype}, which has no fixed bytes; give numbers, booleans or fixed-size text"
        )
    return [key, column.name, column.at, values.dtype.str, list(values.shape)], values.tobytes()


class _NotRead:
    """Stands for arrays that were not asked for: as long as they are, and nothing that could be taken for their content."""

    def take(self, size: int) -> bytes:
        return b""

    def ids(self, count: int, width: int) -> IntArray:
        return _no_ids(count)

    def floats(self, count: int) -> FloatArray:
        return _no_floats(count)


@lru_cache(4096)
def _no_ids(count: int) -> IntArray:
    return token_ids(np.full(count, -1))


@lru_cache(4096)
def _no_floats(count: int) -> FloatArray:
    values = np.full(count, np.nan, np.float32)
    values.flags.writeable = False
    return values


_NOT_READ = _NotRead()


class _Reader:
    """Takes the arrays off the front of `tokens`, one after the other; all are read-only."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, size: int) -> bytes:
        start, self.at = self.at, self.at + size
        if self.at > len(self.data):
            raise ValueError(f"tokens hold {len(self.data)} bytes where {self.at} are described")
        return self.data[start : self.at]

    def ids(self, count: int, width: int) -> IntArray:
        if not count:
            return EMPTY_IDS
        raw = self.take(count * width)
        if width == 3:
            wide = np.zeros((count, 4), np.uint8)
            wide[:, :3] = np.frombuffer(raw, np.uint8).reshape(count, 3)
            array = wide.view("<i4").reshape(count).astype(np.int32, copy=False)
        else:
            array = np.frombuffer(raw, "<u2" if width == 2 else "<i4").astype(np.int32)
        array.flags.writeable = False
        return array

    def floats(self, count: int) -> FloatArray:
        return np.frombuffer(self.take(count * 4), "<f4").astype(np.float32, copy=False) if count else EMPTY_LOGPROBS

    def column(self, dtype: str, shape: list[int]) -> npt.NDArray[Any]:
        kind = np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        if not size:
            empty = np.zeros(shape, kind)
            empty.flags.writeable = False
            return empty
        return np.frombuffer(self.take(size), kind).reshape(shape)


def encode_turn(turn: Turn, name: str, branch: str, interned: Interned) -> tuple[dict[str, Any], bytes]:
    """The JSON and the arrays of a turn whose effect has the key `name` on `branch`."""
    width_C, context = _pack_ids(turn.context_ids)
    width_S, sampled = _pack_ids(turn.sampled_ids)
    parts = [context, sampled, _pack_floats(turn.logprobs)]
    count = len(turn.sampled_ids)
    sizes = [len(turn.context_ids), width_C, count, width_S]
    if len(turn.logprobs) != count:
        sizes.append(len(turn.logprobs))
    meta: dict[str, Any] = {
        "f": interned.frame(turn),
        "i": turn.index,
        "n": sizes,
        "v": _encode_spans(turn, count, interned),
        "s": turn.seed,
        "t": (turn.started, turn.ended),
        "x": turn.text,
    }
    if turn.id != name:
        meta["id"] = turn.id
    if turn.branch != branch:
        meta["b"] = turn.branch
    if turn.parent is not None:
        meta["p"] = (turn.parent.turn, turn.parent.kept)
    if turn.predecessor is not None:
        meta["q"] = 1 if turn.parent is not None and turn.parent.turn == turn.predecessor else turn.predecessor
    if turn.finish != "stop":
        meta["e"] = turn.finish
    if turn.segments:
        meta["g"] = [part for segment in turn.segments for part in (segment.role, segment.start, segment.end)]
    if turn.forced:
        meta["o"] = turn.forced
    if turn.cached_tokens:
        meta["c"] = turn.cached_tokens
    if turn.costs:
        meta["m"] = dict(turn.costs)
    if not turn.valid:
        meta["bad"] = 1
    if turn.untrained:
        meta["un"] = turn.untrained
    _encode_extras(turn, meta, parts, interned)
    if turn.digest:
        meta["d"] = len(turn.digest)
        parts.append(turn.digest)
    return meta, b"".join(parts)


def _encode_spans(turn: Turn, count: int, interned: Interned) -> Any:
    """The number of the version alone where one span covers the sample, the KV kept."""
    spans = turn.versions
    if len(spans) == 1 and spans[0].start == 0 and spans[0].end == count and spans[0].kv == "kept":
        return interned.version(spans[0].version)
    return [[interned.version(span.version), span.start, span.end, *([] if span.kv == "kept" else [1])] for span in spans]


def _encode_extras(turn: Turn, meta: dict[str, Any], parts: list[bytes], interned: Interned) -> None:
    """What most turns do not have."""
    if turn.candidate is not None:
        meta["k"] = [turn.candidate.set, turn.candidate.index, turn.candidate.chosen]
    if turn.tool_calls:
        meta["tools"] = [
            [c.name, c.arguments, c.status, c.output, c.started, c.ended, c.attempts, c.truncated, c.call_id, c.data]
            for c in turn.tool_calls
        ]
    if turn.observation is not None:
        meta["obs"] = turn.observation
    if turn.state is not None:
        meta["st"] = [turn.state.before, turn.state.after, turn.state.action, turn.state.raw]
    if turn.rewards:
        meta["r"] = encode_rewards(turn.rewards)
    if turn.media:
        meta["media"] = turn.media
    if turn.columns:
        packed = [_pack_column(key, column) for key, column in turn.columns.items()]
        meta["cols"] = [head for head, _ in packed]
        parts.extend(data for _, data in packed)
    if turn.probes:
        probes: list[list[Any]] = []
        for probe in turn.probes:
            width, ids = _pack_ids(probe.ids)
            parts.extend((ids, _pack_floats(probe.logprobs)))
            version = None if probe.version is None else interned.version(probe.version)
            probes.append([probe.name, probe.position, len(probe.ids), width, len(probe.logprobs), version, probe.value])
        meta["probes"] = probes


def decode_turn(meta: dict[str, Any], tokens: bytes | None, name: str, branch: str, known: Known) -> Turn:
    """The inverse of `encode_turn`.

    Without `tokens`, ids are -1 and log-probs nan, as many as there are, and columns, segments and the digest are left out.
    """
    agent, policy, tokenizer, template, logprobs_at, kind, sampling = known.frames[meta["f"]]
    reader = _NOT_READ if tokens is None else _Reader(tokens)
    count_C, width_C, count, width_S, *other = meta["n"]
    context, sampled = reader.ids(count_C, width_C), reader.ids(count, width_S)
    logprobs = reader.floats(other[0] if other else count)
    extras = _decode_extras(meta, reader, known)
    digest = reader.take(meta["d"]) if "d" in meta else b""
    parent = Parent(*meta["p"]) if "p" in meta else None
    predecessor: str | None = meta.get("q")
    if "q" in meta and not isinstance(meta["q"], str) and parent is not None:
        predecessor = parent.turn
    segments = meta["g"] if "g" in meta and tokens is not None else []
    return Turn(
        id=meta.get("id", name),
        agent=agent,
        index=meta["i"],
        policy=policy,
        versions=_decode_spans(meta["v"], count, known),
        parent=parent,
        predecessor=predecessor,
        branch=meta.get("b", branch),
        context_ids=context,
        sampled_ids=sampled,
        logprobs=logprobs,
        logprobs_at=logprobs_at,
        finish=meta.get("e", "stop"),
        sampling=sampling,
        seed=meta["s"],
        text=meta["x"],
        kind=kind,
        forced=meta.get("o", 0),
        segments=tuple(Segment(*segments[at : at + 3]) for at in range(0, len(segments), 3)),
        tokenizer=tokenizer,
        template=template,
        valid="bad" not in meta,
        started=meta["t"][0],
        ended=meta["t"][1],
        cached_tokens=meta.get("c", 0),
        costs=meta.get("m", {}),
        untrained=meta.get("un", ""),
        digest=digest,
        **extras,
    )


def _decode_spans(spans: Any, count: int, known: Known) -> tuple[VersionSpan, ...]:
    if isinstance(spans, int):
        return (VersionSpan(known.versions[spans], 0, count),)
    return tuple(VersionSpan(known.versions[v], start, end, "recomputed" if kv else "kept") for v, start, end, *kv in spans)


def _decode_extras(meta: dict[str, Any], reader: _Reader | _NotRead, known: Known) -> dict[str, Any]:
    extras: dict[str, Any] = {}
    if "k" in meta:
        extras["candidate"] = Candidate(*meta["k"])
    if "tools" in meta:
        extras["tool_calls"] = tuple(ToolCall(*call) for call in meta["tools"])
    if "obs" in meta:
        extras["observation"] = meta["obs"]
    if "st" in meta:
        extras["state"] = State(*meta["st"])
    if "r" in meta:
        extras["rewards"] = decode_rewards(meta["r"])
    if "media" in meta:
        extras["media"] = tuple(meta["media"])
    if "cols" in meta and isinstance(reader, _Reader):
        extras["columns"] = {key: Column(name, reader.column(dtype, shape), at) for key, name, at, dtype, shape in meta["cols"]}
    if "probes" in meta:
        extras["probes"] = tuple(
            Probe(
                name,
                position,
                reader.ids(count, width),
                reader.floats(scored),
                None if version is None else known.versions[version],
                value,
            )
            for name, position, count, width, scored, version, value in meta["probes"]
        )
    return extras
