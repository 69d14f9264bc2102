"""Metrics: typed values, reduced once a step, written to sinks. `docs/commands.md` has the names."""

from agentrl.metrics.charts import before_after_table, draw_curve
from agentrl.metrics.console import Console
from agentrl.metrics.record import JSONL, Sink, StepMetrics, TensorBoard, read_metrics

__all__ = ["JSONL", "Console", "Sink", "StepMetrics", "TensorBoard", "before_after_table", "draw_curve", "read_metrics"]
