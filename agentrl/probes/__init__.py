"""Probes: further measurements at the turns of an episode that has ended; see `docs/credit.md`."""

from agentrl.probes.answer import AnswerProbe
from agentrl.probes.contract import Probe, Question

__all__ = ["AnswerProbe", "Probe", "Question"]
