"""What W&B wrote without a network: its .wandb files, read as its own sync reads them.

A file is a log of LevelDB's kind: seven bytes of its own, then blocks of 32 kB of records (checksum, length, kind), which
hold protobuf messages of W&B's own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32768


def messages(file: Path) -> Iterator[Any]:
    """The records of a file."""
    from wandb.proto import wandb_internal_pb2

    data = file.read_bytes()
    assert data[:4] == b":W&B"
    at, whole = 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:  # too little room for a head: the rest of the block is empty
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def history(run: Path) -> list[dict[str, Any]]:
    """What was logged into a run's folder, in order, all sessions."""
    rows: list[dict[str, Any]] = []
    for file in sorted(run.glob("wandb/*run-*/*.wandb")):
        for record in messages(file):
            if record.WhichOneof("record_type") == "history":
                items = {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
                rows.append({key: value for key, value in items.items() if not key.startswith("_")})
    return rows


def runs(run: Path) -> list[tuple[str, str, str]]:
    """(id, project, name) as each session told them."""
    return [
        (record.run.run_id, record.run.project, record.run.display_name)
        for file in sorted(run.glob("wandb/*run-*/*.wandb"))
        for record in messages(file)
        if record.WhichOneof("record_type") == "run"
    ]
