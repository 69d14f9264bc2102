"""Probes: further measurements at the turns of an episode that has ended; see `docs/credit.md`."""

from agentrl.probes.answer import AnswerProbe
from agentrl.probes.contract import Gauge, Probe, Question
from agentrl.probes.entropy import EntropyRise

GAUGES: dict[str, type[Gauge]] = {"entropy_rise": EntropyRise}
"""By the short name that the command line and run folders use. An `AnswerProbe` needs to be told the answer of a task."""

__all__ = ["GAUGES", "AnswerProbe", "EntropyRise", "Gauge", "Probe", "Question"]
