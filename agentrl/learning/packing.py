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
from itertools import pairwise
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


@dataclass(frozen=True, slots=True)
class Block:
    """All of the tokens `queries` see all of the tokens `keys`."""

    queries: slice
    keys: slice


@dataclass(frozen=True, slots=True, eq=False)
class Microbatch:
    """T tokens computed together, and what is scored of them.

    Each path adds its own piece to those before it. A token sees the tokens before it in its piece, and those of the blocks
    that have it among their queries; these are all before it on its path, each once.
    """

    ids: Ints
    positions: Ints
    pieces: Ints
    """Piece i stands at [pieces[i], pieces[i + 1])."""
    blocks: tuple[Block, ...]
    scored_at: Ints
    """(U,) the token that predicts each scored token."""
    targets: Ints
    temperatures: Floats
    idle: bool
    """Whether no row in it has an advantage other than 0."""

    def path(self, piece: int) -> Ints:
        """The tokens from the root to the end of a piece."""
        start, end = self.pieces[piece : piece + 2].tolist()
        seen = [
            (block.keys.start, block.keys.stop) for block in self.blocks if block.queries.start <= start < block.queries.stop
        ]
        return np.concatenate([np.arange(*part) for part in (*sorted(seen), (start, end))])


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


def plan(rows: Sequence[Row], budget: int, *, idle_apart: bool = False) -> Plan:
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
            microbatch, chosen, where = _pack(entries, paths, members, shared, idle)
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
    """For each microbatch its paths in the order of the tree, and how many tokens each shares with the one before it there."""
    members: list[int] = []
    shared: list[int] = []
    total = 0
    for path in _tree_order(paths, part):
        common = _common_prefix(paths[members[-1]], paths[path]) if members else 0
        if members and total + len(paths[path]) - common > budget:
            yield members, shared
            members, shared, total, common = [], [], 0, 0
        members.append(path)
        shared.append(common)
        total += len(paths[path]) - common
    if members:
        yield members, shared


def _tree_order(paths: Sequence[IntArray], part: Sequence[int]) -> list[int]:
    """Paths that share more stand nearer; of the branches at a fork the one with the longest path comes first.

    So a path shares most with the one before it, and long trunks are one piece.
    """
    ordered = sorted(part, key=lambda path: paths[path].astype(">i4").tobytes())
    lengths = np.array([len(paths[path]) for path in ordered])
    common = np.array([0, *(_common_prefix(paths[a], paths[b]) for a, b in pairwise(ordered))])
    result: list[int] = []
    waiting = [(0, len(ordered))] if ordered else []
    while waiting:
        start, end = waiting.pop()
        if end - start == 1:
            result.append(ordered[start])
            continue
        inside = common[start + 1 : end]
        forks = [start, *(np.flatnonzero(inside == inside.min()) + start + 1).tolist(), end]
        waiting.extend(sorted(pairwise(forks), key=lambda branch: int(lengths[branch[0] : branch[1]].max())))
    return result


def _common_prefix(one: IntArray, other: IntArray) -> int:
    length = min(len(one), len(other))
    differs = one[:length] != other[:length]
    return int(differs.argmax()) if differs.any() else length


def _pack(
    entries: EntryColumns, paths: Sequence[IntArray], members: Sequence[int], shared: Sequence[int], idle: bool
) -> tuple[Microbatch, Ints, Ints]:
    """A microbatch, the entries that it scores, and where among its scored tokens each of them stands."""
    pieces, blocks, tokens = _ancestry([len(paths[path]) for path in members], shared)
    first = np.searchsorted(entries.path, members)
    last = np.searchsorted(entries.path, members, side="right")
    chosen = np.concatenate([np.arange(start, end) for start, end in zip(first, last, strict=True)])
    at = np.concatenate([own[entries.position[a:b] - 1] for own, a, b in zip(tokens, first, last, strict=True)])
    temperatures, warmth = np.unique(entries.temperature[chosen], return_inverse=True)
    key = (at * len(temperatures) + warmth) * (int(entries.target.max()) + 1) + entries.target[chosen]
    _, unique, where = np.unique(key, return_index=True, return_inverse=True)
    microbatch = Microbatch(
        ids=np.concatenate([paths[path][common:] for path, common in zip(members, shared, strict=True)]).astype(np.int64),
        positions=np.concatenate([np.arange(common, len(paths[path])) for path, common in zip(members, shared, strict=True)]),
        pieces=pieces,
        blocks=blocks,
        scored_at=at[unique],
        targets=entries.target[chosen][unique],
        temperatures=entries.temperature[chosen][unique],
        idle=idle,
    )
    return microbatch, chosen, where.reshape(-1)


def _ancestry(lengths: Sequence[int], shared: Sequence[int]) -> tuple[Ints, tuple[Block, ...], list[Ints]]:
    """Pieces and blocks of paths in the order of the tree, and of each path the tokens at its places.

    A path sees parts of earlier pieces, root first. As long as the paths that follow see the same part, their pieces are the
    queries of one block.
    """
    seen: list[tuple[int, int, int]] = []  # start and end of the part, and the first token that sees it
    blocks: list[Block] = []
    pieces, tokens = [0], [np.zeros(0, np.int64)]
    for length, common in zip(lengths, shared, strict=True):
        count, depth = pieces[-1], len(tokens[-1])
        while depth > common:
            start, end, query = seen.pop()
            if query < count:
                blocks.append(Block(slice(query, count), slice(start, end)))
            depth -= end - start
            if depth < common:
                seen.append((start, start + common - depth, count))
                depth = common
        tokens.append(np.concatenate((tokens[-1][:common], np.arange(count, count + length - common))))
        if length > common:
            pieces.append(count + length - common)
            seen.append((count, pieces[-1], pieces[-1]))
    blocks.extend(Block(slice(query, pieces[-1]), slice(start, end)) for start, end, query in seen if query < pieces[-1])
    return np.array(pieces), tuple(blocks), tokens[1:]
