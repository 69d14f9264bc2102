"""How a run went, on one page: `agentrl report RUN`."""

from agentrl.report.gather import Gathered, gather
from agentrl.report.page import write_page
from agentrl.report.text import summarise

__all__ = ["Gathered", "gather", "summarise", "write_page"]
