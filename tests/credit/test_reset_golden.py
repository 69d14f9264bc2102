"""DR-PO's roll-in against the numbers of the authors' mask function."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from agentrl.rollout.reset import roll_in

GOLDEN = Path(__file__).parent / "golden"


def test_roll_in_draws_the_prefixes_that_the_authors_mask_has() -> None:
    data = json.loads((GOLDEN / "dr_po_rollin.json").read_text())
    lengths, share = data["inputs"]["seq_lens"], data["params"]["beta"]
    rng = np.random.default_rng(0)
    chances = rng.random(len(lengths))  # they draw all of a batch's at once, then the lengths one after the other
    kept = [
        roll_in(length, share, chance, lambda least, end: int(rng.integers(least, end)))
        for length, chance in zip(lengths, chances.tolist(), strict=True)
    ]
    width = data["inputs"]["max_len"]
    given = np.array([[place < count for place in range(width)] for count in kept])
    assert given.tolist() == np.array(data["official"]["rollin_mask"], bool).tolist()
    assert (~given).tolist() == np.array(data["expected"]["policy_loss_mask"], bool).tolist()
    assert all(count < length for count, length in zip(kept, lengths, strict=True)), "the end token is never given"
