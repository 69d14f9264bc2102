"""Rows to flat tensors: every token of a path once, whichever paths share it.

Legend: P paths (one a row), T unique tokens of a microbatch, U scored tokens (a place, the id drawn there and the temperature
it was drawn at), N entries (one per row and trained token), S slots (places in the padded blocks that attention works on).

Two paths share a token when all ids up to it are the same. So the turns of a tree share what they go on from, and the
episodes of a group their prompt; log-probs depend on nothing but the ids, so that sharing changes no value. Paths are sorted
by their ids: then a path shares most with the one before it, and what it adds stands in one piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from agentrl.episode import FloatArray, IntArray, Turn
from agentrl.errors import UserError
from agentrl.learning.contract import Row
from agentrl.learning.rows import Path, trace

if TYPE_CHECKING:
    import numpy.typing as npt

Ints: TypeAlias = "npt.NDArray[np.int64]"
Floats: TypeAlias = "npt.NDArray[np.float64]"

REFERENCE = "reference"
"""Name of a turn's column of reference log-probs."""
BUCKET_GROWTH = 1.3
"""Paths are padded together as long as the longest has at most this many times the tokens of the shortest."""


@dataclass(frozen=True, slots=True, eq=False)
class EntryColumns:
    """One entry per (row, trained token), in the order of rows, turns and tokens; all (N,)."""

    path: Ints
    position: Ints
    """Where on the path the token stands; its log-prob is read one place before."""
    target: Ints
    temperature: Floats
    behaviour: Floats
    advantage: Floats
    weight: Floats
    turn: Ints
    episode: Ints
    reference: Floats | None

    def __len__(self) -> int:
        return len(self.path)


@dataclass(frozen=True, slots=True, eq=False)
class Bucket:
    """Paths padded to one length for attention: `paths` x `length` slots."""

    paths: int
    length: int
    tokens: Ints
    """The token in each slot; padding slots hold token 0, whose value never reaches a result."""


@dataclass(frozen=True, slots=True, eq=False)
class Microbatch:
    """T tokens computed together, and what is scored of them."""

    ids: Ints
    positions: Ints
    buckets: tuple[Bucket, ...]
    slots: Ints
    """(T,) the slot in which each token's attention is computed."""
    extra: tuple[Ints, Ints]
    """(slots, tokens) of all further slots in which a shared token stands, as key and value only."""
    scored_at: Ints
    """(U,) the token that predicts each scored token."""
    targets: Ints
    temperatures: Floats
    idle: bool
    """Whether no row in it has an advantage other than 0."""


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A whole step: its entries, its microbatches, and where in the concatenation of all scored tokens each entry stands."""

    entries: EntryColumns
    microbatches: tuple[Microbatch, ...]
    scored: Ints
    num_rows: int

    @property
    def tokens(self) -> int:
        """Tokens that go through the model."""
        return sum(len(microbatch.ids) for microbatch in self.microbatches)


def plan(rows: Sequence[Row], budget: int, growth: float = BUCKET_GROWTH, *, idle_apart: bool = False) -> Plan:
    """Lays out the rows in microbatches of at most `budget` unique tokens (a longer path stands alone).

    With `idle_apart`, rows whose advantages are all 0 come after the others, in microbatches of their own.
    """
    entries, paths = _entries(rows)
    live = np.zeros(len(rows), dtype=np.bool_)
    np.logical_or.at(live, entries.path, entries.advantage != 0)
    filled = [path for path in range(len(rows)) if len(paths[path])]
    parts = [[path for path in filled if live[path] == wanted] for wanted in (True, False)] if idle_apart else [filled]
    microbatches: list[Microbatch] = []
    scored = np.zeros(len(entries), dtype=np.int64)
    before = 0
    for part in parts:
        for members, shared in _split(paths, part, budget):
            idle = not live[members].any()
            microbatch, chosen, where = _pack(entries, paths, members, shared, growth, idle)
            scored[chosen] = where + before
            before += len(microbatch.targets)
            microbatches.append(microbatch)
    return Plan(entries, tuple(microbatches), scored, len(rows))


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """The trained tokens of one turn in one row."""

    row: int
    episode: int
    turn: Turn
    start: int
    """Where on the path its first sampled token stands."""
    at: Ints
    """Which of its sampled tokens are trained."""
    advantage: FloatArray
    weight: float


def _entries(rows: Sequence[Row]) -> tuple[EntryColumns, list[IntArray]]:
    """The entries, and of each path the ids that must be computed: all before its last trained token."""
    pieces: list[_Piece] = []
    paths: list[IntArray] = []
    episodes: dict[str, int] = {}
    for number, row in enumerate(rows):
        path = trace(row.episode, row.leaf)
        pieces.extend(_pieces(number, row, path, episodes.setdefault(row.episode.id, len(episodes))))
        paths.append(path.ids)
    counts = np.array([len(piece.at) for piece in pieces], dtype=np.int64)
    row_of = np.repeat(np.array([piece.row for piece in pieces], dtype=np.int64), counts)
    position = _joined([piece.start + piece.at for piece in pieces]).astype(np.int64)
    starts = np.cumsum([0, *(len(path) for path in paths)])
    entries = EntryColumns(
        path=row_of,
        position=position,
        target=_joined(paths).astype(np.int64)[starts[row_of] + position],
        # Greedy tokens carry log-probs at temperature 1.
        temperature=np.repeat(np.array([piece.turn.sampling.temperature or 1.0 for piece in pieces]), counts),
        behaviour=_joined([piece.turn.logprobs[piece.at] for piece in pieces]),
        advantage=_joined([piece.advantage[piece.at] for piece in pieces]),
        weight=np.repeat(np.array([piece.weight for piece in pieces]), counts),
        turn=np.repeat(np.arange(len(pieces)), counts),
        episode=np.repeat(np.array([piece.episode for piece in pieces], dtype=np.int64), counts),
        reference=_reference(pieces),
    )
    last = np.zeros(len(rows), dtype=np.int64)
    np.maximum.at(last, row_of, position)
    return entries, [path[:end] for path, end in zip(paths, last, strict=True)]


def _pieces(number: int, row: Row, path: Path, episode: int) -> Iterator[_Piece]:
    spans = {span.turn.id: span for span in path.spans if span.whole}
    for trained in row.trained:
        turn = trained.turn
        sampled = len(turn.sampled_ids)
        if turn.id not in spans:
            raise UserError(f"row {number}: turn {turn.id} is not whole on the path to {row.leaf.id}; mend the row")
        if len(turn.logprobs) != sampled or len(trained.advantage) != sampled:
            raise UserError(
                f"row {number}: turn {turn.id} has {sampled} sampled tokens but {len(turn.logprobs)} behaviour log-probs and "
                f"{len(trained.advantage)} advantages; mend the record (nan stands for an unknown log-prob)"
            )
        start, at = spans[turn.id].start, trained.places
        if len(at) and start + at[0] == 0:
            raise UserError(f"row {number}: turn {turn.id} was drawn from an empty prompt, which cannot be scored")
        yield _Piece(number, episode, turn, start, at, trained.advantage, row.weight)


def _reference(pieces: Sequence[_Piece]) -> Floats | None:
    """The recorded reference log-probs, if every trained turn has them."""
    if not pieces or any(REFERENCE not in piece.turn.columns for piece in pieces):
        return None
    return _joined([piece.turn.columns[REFERENCE].values[piece.at] for piece in pieces])


def _joined(parts: Sequence[npt.NDArray[Any]]) -> Floats:
    """One float64 array; exact for ids as well."""
    return np.concatenate(parts, dtype=np.float64) if parts else np.zeros(0)


def _split(paths: Sequence[IntArray], part: Sequence[int], budget: int) -> Iterator[tuple[list[int], list[int]]]:
    """For each microbatch its paths in sorted order, and how many tokens each shares with the one before it there."""
    order = sorted(part, key=lambda path: paths[path].astype(">i4").tobytes())
    members: list[int] = []
    shared: list[int] = []
    total = 0
    for path in order:
        common = _common_prefix(paths[members[-1]], paths[path]) if members else 0
        if members and total + len(paths[path]) - common > budget:
            yield members, shared
            members, shared, total, common = [], [], 0, 0
        members.append(path)
        shared.append(common)
        total += len(paths[path]) - common
    if members:
        yield members, shared


def _common_prefix(one: IntArray, other: IntArray) -> int:
    length = min(len(one), len(other))
    differs = one[:length] != other[:length]
    return int(differs.argmax()) if differs.any() else length


def _pack(
    entries: EntryColumns,
    paths: Sequence[IntArray],
    members: Sequence[int],
    shared: Sequence[int],
    growth: float,
    idle: bool,
) -> tuple[Microbatch, Ints, Ints]:
    """A microbatch, the entries that it scores, and where among its scored tokens each of them stands."""
    tokens: dict[int, Ints] = {}  # path -> the token at each of its places
    count = 0
    own = [len(paths[path]) - common for path, common in zip(members, shared, strict=True)]
    for at, (path, common) in enumerate(zip(members, shared, strict=True)):
        inherited = tokens[members[at - 1]][:common] if common else np.zeros(0, np.int64)
        tokens[path] = np.concatenate((inherited, np.arange(count, count + own[at])))
        count += own[at]
    buckets, slots, extra = _buckets(members, shared, tokens, count, growth)
    first = np.searchsorted(entries.path, members)
    last = np.searchsorted(entries.path, members, side="right")
    chosen = np.concatenate([np.arange(start, end) for start, end in zip(first, last, strict=True)])
    at = np.concatenate([tokens[path][entries.position[a:b] - 1] for path, a, b in zip(members, first, last, strict=True)])
    temperatures, warmth = np.unique(entries.temperature[chosen], return_inverse=True)
    key = (at * len(temperatures) + warmth) * (int(entries.target.max()) + 1) + entries.target[chosen]
    _, unique, where = np.unique(key, return_index=True, return_inverse=True)
    microbatch = Microbatch(
        ids=np.concatenate([paths[path][common:] for path, common in zip(members, shared, strict=True)]).astype(np.int64),
        positions=np.concatenate([np.arange(common, len(paths[path])) for path, common in zip(members, shared, strict=True)]),
        buckets=buckets,
        slots=slots,
        extra=extra,
        scored_at=at[unique],
        targets=entries.target[chosen][unique],
        temperatures=entries.temperature[chosen][unique],
        idle=idle,
    )
    return microbatch, chosen, where.reshape(-1)


def _buckets(
    members: Sequence[int], shared: Sequence[int], tokens: dict[int, Ints], count: int, growth: float
) -> tuple[tuple[Bucket, ...], Ints, tuple[Ints, Ints]]:
    """Pads paths of nearly equal length together. A path that adds no token has nothing to compute and no slots."""
    adding = [(path, common) for path, common in zip(members, shared, strict=True) if len(tokens[path]) > common]
    adding.sort(key=lambda item: len(tokens[item[0]]))
    slots = np.zeros(count, dtype=np.int64)
    extra_slots: list[Ints] = [np.zeros(0, np.int64)]
    extra_tokens: list[Ints] = [np.zeros(0, np.int64)]
    buckets: list[Bucket] = []
    base = 0
    while adding:
        limit = len(tokens[adding[0][0]]) * growth
        size = sum(len(tokens[path]) <= limit for path, _ in adding)
        length = len(tokens[adding[size - 1][0]])
        block = np.zeros((size, length), dtype=np.int64)
        for line, (path, common) in enumerate(adding[:size]):
            places = tokens[path]
            start = base + line * length
            block[line, : len(places)] = places
            slots[places[common:]] = np.arange(start + common, start + len(places))
            extra_slots.append(np.arange(start, start + common))
            extra_tokens.append(places[:common])
        buckets.append(Bucket(size, length, block.reshape(-1)))
        base += size * length
        adding = adding[size:]
    return tuple(buckets), slots, (np.concatenate(extra_slots), np.concatenate(extra_tokens))
