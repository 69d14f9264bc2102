"""The two passes over the rows: prefill a piece of some, and sample one token for all that are ready."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agentrl.engines.local.decoder import Decoder
from agentrl.engines.local.rows import Rows
from agentrl.engines.local.sampling import Rules, draw, entropy, temper, uniform
from agentrl.engines.local.shapes import SCORED_AT_ONCE
from agentrl.errors import EngineError

Index: TypeAlias = npt.NDArray[Any]


def prefill(decoder: Decoder, rows: Rows, pending: Index) -> list[int]:
    """Computes a piece of as many of the pending rows as fit into one pass; gives the rows it served.

    The last known id of a row stays for the sampling pass. Log-probs of given ids (forced, or to be scored) whose
    predecessors are computed here are written down.
    """
    room, reach = decoder.shapes.widths[-1], decoder.shapes.query_rows[-1] // decoder.group
    taken: list[int] = []
    counts: list[int] = []
    for row in pending.tolist():
        piece = min(int(rows.length[row] - rows.done[row]) - 1, reach, room - sum(counts))
        # ragged pieces are padded to the longest in attention: a short one is not worth a wide pass
        if piece <= 0 or (taken and (len(taken) + 1) * max([piece, *counts]) > 2 * room):
            break
        taken.append(row)
        counts.append(piece)
    starts: list[int] = rows.done[taken].tolist()
    pieces = [rows.ids[row, start : start + size] for row, start, size in zip(taken, starts, counts, strict=True)]
    hidden = decoder.prefill(taken, starts, pieces)
    _score_given(decoder, rows, hidden, taken, starts, counts)
    rows.done[taken] += counts
    rows.wanted[taken] = np.maximum(rows.wanted[taken], rows.done[taken] + 1)
    return taken


def _score_given(decoder: Decoder, rows: Rows, hidden: Tensor, taken: list[int], starts: list[int], counts: list[int]) -> None:
    owner = np.repeat(np.array(taken), counts)
    offset = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    position: Index = np.repeat(np.array(starts), counts) + offset + 1  # of the id that a computed row predicts
    wanted = np.flatnonzero(position >= rows.wanted[owner])
    for begin in range(0, len(wanted), SCORED_AT_ONCE):
        place = wanted[begin : begin + SCORED_AT_ONCE]
        row, at, count = owner[place], position[place], len(place)
        index = np.zeros(decoder.shapes.width(count), np.int64)
        index[:count] = place
        logits = temper(decoder.logits(hidden[torch.from_numpy(index)]), rows.temperature[row].astype(np.float32))
        logprobs = torch.log_softmax(logits, -1)
        ids = torch.from_numpy(rows.ids[row, at].astype(np.int64))
        rows.logprobs[row, at] = finite(logprobs[:count].gather(1, ids[:, None])[:, 0].numpy())
        if rows.entropy[row].any():
            rows.entropies[row, at] = entropy(logprobs, torch.softmax(logits, -1))[:count].numpy()


def sample(decoder: Decoder, rows: Rows, ready: Index) -> list[int]:
    """Draws one token for each ready row; gives those that ended by a stop id or by length.

    Rows still being prefilled go along: what they compute is right but unused, and their place is written again.
    """
    count = rows.count
    width = decoder.shapes.width(count)
    ids, positions = np.zeros(width, np.int64), np.zeros(width, np.int64)
    positions[:count] = rows.done[:count]
    ids[:count] = rows.ids[np.arange(count), rows.done[:count]]
    logits = decoder.decode(ids, positions)
    rules = Rules(rows.temperature[:count].astype(np.float32), rows.top_k[:count], rows.top_p[:count], rows.greedy[:count])
    numbers = uniform(rows.seed[:count], rows.length[:count] - rows.start[:count])
    drawn, logprobs, every_logprob, probabilities = draw(logits, rules, numbers)
    at, taken = rows.length[ready], drawn[ready]
    rows.ids[ready, at], rows.logprobs[ready, at] = taken, finite(logprobs[ready])
    if rows.entropy[ready].any():
        rows.entropies[ready, at] = entropy(every_logprob, probabilities)[:count].numpy()[ready]
    rows.done[ready] = at
    rows.length[ready] = rows.wanted[ready] = at + 1
    stopped = (rows.stop_ids[ready] == taken[:, None]).any(1)
    return ready[stopped | (at + 1 >= rows.limit[ready])].tolist()


def finite(logprobs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The same, or an `EngineError`: weights that give no numbers must not go on unseen."""
    if np.isnan(logprobs).any():
        raise EngineError("the model gave log-probs that are not numbers; its weights are broken: publish good ones")
    return logprobs
