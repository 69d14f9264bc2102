"""An effect as a row of `effect`."""

from __future__ import annotations

import json
from typing import Any

from agentrl.effect import Effect, EffectKey
from agentrl.store.codec import (
    Blobs,
    Load,
    Row,
    decode_document,
    decode_float,
    decode_text,
    encode_document,
    encode_int,
    encode_json,
    encode_text,
)
from agentrl.store.turns import Interned, Known, decode_turn, encode_turn

EFFECT_COLUMNS = (
    "seq, episode, branch, attempt, position, kind, name, request, note, issued, completed, at, "
    "status, value, more, turn, tokens"
)


def encode_effect(seq: int, episode: int, effect: Effect, interned: Interned, blobs: Blobs) -> Row:
    """A row of `effect`; large documents are added to `blobs`. `UserError` if a value is no JSON, or an array mistyped."""
    key = effect.key
    more: dict[str, Any] | None = None
    if effect.costs or effect.blobs:
        more = {"costs": dict(effect.costs)} if effect.costs else {}
        if effect.blobs:
            more["blobs"] = effect.blobs
    turn = tokens = None
    if effect.turn is not None:
        meta, tokens = encode_turn(effect.turn, str(key), key.branch, interned)
        turn = encode_document(meta, blobs)
    return (
        seq,
        episode,
        encode_text(key.branch),
        encode_int(key.attempt, "attempt"),
        encode_int(key.position, "position"),
        effect.kind,
        encode_text(effect.name),
        bytes(effect.request),
        encode_text(effect.note),
        encode_int(effect.issued, "issued"),
        encode_int(effect.completed, "completed"),
        float(effect.at),
        effect.status,
        None if effect.value is None else encode_document(effect.value, blobs),
        None if more is None else encode_json(more),
        turn,
        tokens,
    )


def decode_effect(row: Row, known: Known, load: Load) -> Effect:
    """The inverse of `encode_effect`."""
    _, _, branch, attempt, position, kind, name, request, note, issued, completed, at, status, value, rest, turn, tokens = row
    key = EffectKey(decode_text(branch), attempt, position)
    more = {} if rest is None else json.loads(rest)
    return Effect(
        key=key,
        kind=kind,
        name=decode_text(name),
        request=request,
        note=decode_text(note),
        issued=issued,
        completed=completed,
        at=decode_float(at),
        status=status,
        value=None if value is None else decode_document(value, load),
        turn=None if turn is None else decode_turn(decode_document(turn, load), tokens, str(key), key.branch, known),
        blobs=tuple(more["blobs"]) if "blobs" in more else (),
        costs=more.get("costs", {}),
    )
