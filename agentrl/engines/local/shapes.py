"""Which padded shapes give equal bits, found by trial on this machine with this model's sizes.

The result of a matrix product depends in its last bits on the shapes that the library was called with. So the engine works
only at shapes that a self-test found to agree, in three lists: rows of a matrix product, query rows of an attention
block, and keys. A shape that differs is forbidden; where none agree with another, one fixed shape is left.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from agentrl.engines.local.attention import attend_one, joinable
from agentrl.engines.local.sampling import row_numbers
from agentrl.transformer import matmul
from agentrl.transformer.layers import rms_norm

if TYPE_CHECKING:
    from agentrl.engines.local.decoder import Decoder

log = logging.getLogger(__name__)

WIDTHS = (*range(4, 32, 4), *range(32, 64, 8), *range(64, 128, 16), *range(128, 257, 32))
QUERIES = (*range(4, 32, 4), 32, 48, 64, 96, 128, 192, 256)
KEY_BLOCK = 512
SCORED_AT_ONCE = 64
"""Rows of logits computed together when given ids are scored: bounds memory with large vocabularies."""
NEVER = float("-inf")
KEYS = tuple(range(32, KEY_BLOCK + 1, 32))
"""Longer contexts are whole blocks of 512, as the library walks them, and one of these."""


@dataclass(frozen=True)
class Shapes:
    """The allowed shapes, ascending. `exact` is false when even one shape gave other bits in other places of a batch."""

    widths: tuple[int, ...] = WIDTHS
    query_rows: tuple[int, ...] = QUERIES
    key_tails: tuple[int, ...] = KEYS
    join: int = 1
    """Key heads that decoding computes as one."""
    exact: bool = True

    def width(self, rows: int) -> int:
        """The least allowed number of rows that holds `rows`."""
        return self.widths[bisect_left(self.widths, rows)]

    def queries(self, rows: int) -> int:
        """The least allowed number of query rows that holds `rows`."""
        return self.query_rows[bisect_left(self.query_rows, rows)]

    def keys(self, count: int) -> int:
        """The least allowed number of keys that holds `count`."""
        blocks, tail = divmod(count, KEY_BLOCK)
        return blocks * KEY_BLOCK + (self.key_tails[bisect_left(self.key_tails, tail)] if tail else 0)


def find_shapes(decoder: Decoder, slots: int) -> Shapes:
    """Tries all candidates with the model's own first layer; takes milliseconds for small models. Logs what it forbids."""
    generator = torch.Generator().manual_seed(0)
    widths, same_rows = _widths(decoder, slots, generator)
    queries, same_queries = _queries(decoder, generator)
    keys = _keys(decoder, generator)
    shapes = Shapes(widths, queries, keys, exact=same_rows and same_queries)
    shapes = replace(shapes, join=_join(decoder, shapes, generator))
    for what, allowed, tried in (("row", widths, WIDTHS), ("query", queries, QUERIES), ("key", keys, KEYS)):
        forbidden = [size for size in tried if size not in allowed]
        if forbidden:
            log.info("%s counts %s give other bits on this machine and are not used", what, forbidden)
        if len(allowed) == 1:
            log.warning("no two %s counts give equal bits on this machine; all work is padded to %d", what, allowed[0])
    if not shapes.exact:
        log.warning("bits depend on the place in a batch on this machine; the engine is not deterministic here")
    return shapes


def _widths(decoder: Decoder, slots: int, generator: torch.Generator) -> tuple[tuple[int, ...], bool]:
    """Widths at which a row gives the same numbers wherever it stands: beside copies of itself and beside junk.

    Logits are tried at the widths that decoding and scoring use; prefill alone uses the larger ones.
    """
    row = torch.randn(1, decoder.config.hidden_size, generator=generator)
    most = next(width for width in WIDTHS if width >= max(slots, SCORED_AT_ONCE))
    inner: dict[bytes, list[int]] = {}
    last: dict[bytes, list[int]] = {}
    for width in WIDTHS:
        junk = torch.randn(width, row.shape[1], generator=generator)
        place = int(torch.randint(width, (), generator=generator))
        junk[place] = row
        for work, found in ((_row_work, inner), (_logit_work, last)):
            if work is _logit_work and width > most:
                continue
            alike, beside = work(decoder, row.expand(width, -1).contiguous()), work(decoder, junk)
            if all(
                bool((one == one[:1]).all()) and torch.equal(one[0], two[place]) for one, two in zip(alike, beside, strict=True)
            ):
                found.setdefault(b"".join(part[0].numpy().tobytes() for part in alike), []).append(width)
    widths, same = _largest_class(inner, WIDTHS[-1])
    logit_widths, same_logits = _largest_class(last, most)
    both = tuple(width for width in widths if width > most or width in logit_widths)
    return (both, same and same_logits) if both and both[-1] >= slots else ((WIDTHS[-1],), False)


def _row_work(decoder: Decoder, x: Tensor) -> list[Tensor]:
    """Everything that a layer does with rows [W, hidden] outside attention."""
    layer, config = decoder.weights.layers[0], decoder.config
    qkv = matmul.product(rms_norm(x, layer.norm, config.rms_eps), layer.qkv, layer.qkv_bias)
    mixed = qkv[:, : config.heads * config.head_dim].contiguous()
    turned = qkv[:, : (config.heads + config.kv_heads) * config.head_dim].unflatten(-1, (-1, config.head_dim))
    normed = turned if layer.qk_norm is None else rms_norm(turned, layer.qk_norm, config.rms_eps)
    return [qkv, normed, matmul.product(mixed, layer.out, layer.out_bias), decoder.mlp(layer, x)]


def _logit_work(decoder: Decoder, x: Tensor) -> list[Tensor]:
    return list(row_numbers(decoder.logits(x) * 8))  # spread, as logits of trained weights are


def _queries(decoder: Decoder, generator: torch.Generator) -> tuple[tuple[int, ...], bool]:
    """Sizes of query blocks that give one query the same result at every place of the block and of the batch."""
    config = decoder.config
    keys = 128
    query = torch.randn(1, config.kv_heads, 1, config.head_dim, generator=generator)
    k, v = torch.randn(2, 1, config.kv_heads, keys, config.head_dim, generator=generator)
    found: dict[bytes, list[int]] = {}
    for rows in QUERIES:
        if rows < decoder.group:
            continue
        mask = torch.zeros(1, 1, rows, keys)
        mask[..., 101:] = NEVER
        alike = F.scaled_dot_product_attention(query.expand(-1, -1, rows, -1).contiguous(), k, v, attn_mask=mask)
        same = bool((alike == alike[:, :, :1]).all())
        for batch in (2, 5, 16):
            place = int(torch.randint(rows, (), generator=generator))
            junk = torch.randn(batch, config.kv_heads, rows, config.head_dim, generator=generator)
            junk_k, junk_v = torch.randn(2, batch, keys, config.kv_heads, config.head_dim, generator=generator).transpose(2, 3)
            junk[batch - 1, :, place], junk_k[batch - 1], junk_v[batch - 1] = query[0, :, 0], k[0], v[0]
            beside = F.scaled_dot_product_attention(junk, junk_k, junk_v, attn_mask=mask.expand(batch, -1, -1, -1))
            same = same and torch.equal(beside[batch - 1, :, place], alike[0, :, 0])
        if same:
            found.setdefault(alike[0, :, 0].numpy().tobytes(), []).append(rows)
    return _largest_class(found, QUERIES[-1])


def _keys(decoder: Decoder, generator: torch.Generator) -> tuple[int, ...]:
    """Padded numbers of keys in the last block at which every shorter context gives what it gives at a whole block."""
    config = decoder.config
    rows = 4 * -(-decoder.group // 4)
    lengths = torch.tensor(sorted({*range(1, KEY_BLOCK, 8), *range(31, KEY_BLOCK, 32), *KEYS}))
    query = torch.randn(1, config.kv_heads, rows, config.head_dim, generator=generator).expand(len(lengths), -1, -1, -1)
    allowed: list[int] = []
    for blocks in (0, 1):
        size = (blocks + 1) * KEY_BLOCK
        k, v = torch.randn(2, 1, size, config.kv_heads, config.head_dim, generator=generator).transpose(2, 3)
        seen = lengths + blocks * KEY_BLOCK
        mask = torch.zeros(len(seen), 1, 1, size).masked_fill_(torch.arange(size) >= seen[:, None, None, None], NEVER)

        def attend(keys: int, batch: int, k: Tensor = k, v: Tensor = v, mask: Tensor = mask) -> Tensor:
            return F.scaled_dot_product_attention(
                query[:batch].contiguous(),
                k[:, :, :keys].expand(batch, -1, -1, -1),
                v[:, :, :keys].expand(batch, -1, -1, -1),
                attn_mask=mask[:batch, ..., :keys].expand(-1, -1, rows, -1),
            )

        whole = attend(size, len(lengths))
        agree = []
        for tail in KEYS:
            fit = int((lengths <= tail).sum())
            if torch.equal(attend(blocks * KEY_BLOCK + tail, fit), whole[:fit]):
                agree.append(tail)
        allowed = agree if not blocks else [tail for tail in allowed if tail in agree]
    return tuple(allowed)


def _join(decoder: Decoder, shapes: Shapes, generator: torch.Generator) -> int:
    """The number of key heads that may be joined in decoding: all that fit when the bits stay the same, else one."""
    config, batch = decoder.config, 19
    join = joinable(config.heads, config.kv_heads)
    block, single = shapes.queries(join * decoder.group), shapes.queries(decoder.group)
    for keys in (*shapes.key_tails, KEY_BLOCK + shapes.key_tails[0]):
        q = torch.randn(batch, config.heads, config.head_dim, generator=generator)
        k, v = torch.randn(2, batch, keys, config.kv_heads, config.head_dim, generator=generator)
        seen = torch.randint(1, keys + 1, (batch, 1, 1, 1), generator=generator)
        mask = torch.zeros(batch, 1, 1, keys).masked_fill_(torch.arange(keys) >= seen, NEVER)
        if not torch.equal(attend_one(q, k, v, mask, join, block), attend_one(q, k, v, mask, 1, single)):
            log.info("joined heads give other bits on this machine; heads are computed one by one")
            return 1
    return join


def _largest_class(found: dict[bytes, list[int]], fallback: int) -> tuple[tuple[int, ...], bool]:
    if not found:
        return (fallback,), False
    return tuple(max(found.values(), key=lambda sizes: (len(sizes), sizes[-1]))), True
