"""Attention of one new token a row, on heads joined into blocks of full size.

The library multiplies blocks of at least four query rows. One query a key head would leave three of them empty, so up to
four key heads are joined: their queries become the rows of one block-diagonal matrix over the heads' joined width. The
zeros add nothing, not even a rounding; `shapes` tries whether the bits are those of single heads and else forbids it.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

BLOCK_ROWS = 4


def joinable(heads: int, kv_heads: int) -> int:
    """How many key heads fill one block: the most that divide `kv_heads` with at most four queries in all."""
    group = heads // kv_heads
    return max(join for join in range(1, BLOCK_ROWS + 1) if kv_heads % join == 0 and (join == 1 or join * group <= BLOCK_ROWS))


def attend_one(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, join: int, block: int) -> Tensor:
    """[W, heads * d] for q [W, heads, d], k and v [W, L, kv_heads, d], mask [W, 1, 1, L] added to the scores.

    `block` query rows hold the joined heads, so `block >= join * heads / kv_heads`.
    """
    width, heads, dim = q.shape
    blocks, group = k.shape[2] // join, heads // k.shape[2]
    used = join * group
    padded = q.new_zeros(width, blocks, block, join * dim)
    spread = padded[:, :, :used].unflatten(3, (join, dim)).unflatten(2, (join, group))
    spread.diagonal(dim1=2, dim2=4).copy_(q.view(width, blocks, join, group, dim).permute(0, 1, 3, 4, 2))
    k, v = (each.flatten(2).unflatten(2, (blocks, join * dim)).transpose(1, 2) for each in (k, v))
    mixed = F.scaled_dot_product_attention(padded, k, v, attn_mask=mask.expand(-1, -1, block, -1), scale=dim**-0.5)
    apart = mixed[:, :, :used].unflatten(3, (join, dim)).unflatten(2, (join, group)).diagonal(dim1=2, dim2=4)
    return apart.permute(0, 1, 4, 2, 3).reshape(width, heads * dim)
