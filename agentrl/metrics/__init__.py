"""Metrics: typed values, reduced once a step, written to sinks. `docs/commands.md` has the names."""

from agentrl.metrics.charts import before_after_table, draw_curve
from agentrl.metrics.console import Console
from agentrl.metrics.named import SINKS, sink_named
from agentrl.metrics.record import JSONL, OfRun, Sink, StepMetrics, TensorBoard, read_metrics
from agentrl.metrics.trackers import Trackio, WandB

__all__ = [
    "JSONL",
    "SINKS",
    "Console",
    "OfRun",
    "Sink",
    "StepMetrics",
    "TensorBoard",
    "Trackio",
    "WandB",
    "before_after_table",
    "draw_curve",
    "read_metrics",
    "sink_named",
]
