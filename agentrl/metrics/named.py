"""Sinks by name: a short name of `SINKS` or of the entry points `agentrl.sinks`, `module:name`, or `file.py:name`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from agentrl.errors import UserError
from agentrl.metrics.record import Sink, TensorBoard
from agentrl.metrics.trackers import Trackio, WandB
from agentrl.resolve import resolve

SINKS: Mapping[str, Callable[[], Sink]] = {"tensorboard": TensorBoard, "trackio": Trackio, "wandb": WandB}


def sink_named(text: str) -> Sink:
    """The sink that a name gives: what is named is called without arguments, or is a sink already."""
    value = resolve(text, group="agentrl.sinks", table=SINKS)
    made = callable(value) and (isinstance(value, type) or not hasattr(value, "write"))
    sink: Any = value() if made else value
    lacking = [name for name in ("write", "note", "close") if not callable(getattr(sink, name, None))]
    if lacking:
        raise UserError(f"{text} gives {type(sink).__name__}, which is no sink: it has no {', '.join(lacking)}")
    return sink
