"""The report's summary for a terminal."""

from __future__ import annotations

from agentrl.report import say
from agentrl.report.gather import Gathered
from agentrl.view.text import visible

_WIDTH = 11


def summarise(gathered: Gathered) -> str:
    """A few lines: what the page tells at greater length."""
    lines = [
        ("run", say.of_run(gathered)),
        ("learning", say.of_learning(gathered)),
        ("time", say.of_time(gathered)),
        ("stragglers", say.of_stragglers(gathered)),
        ("loop lag", say.of_lag(gathered)),
        ("drift", say.of_drift(gathered)[1]),
        *(("drift", line) for line in say.of_gap(gathered)),
        ("staleness", say.of_staleness(gathered)),
        ("tokens", say.of_tokens(gathered)),
        *(("tools", line) for line in say.of_tools(gathered)),
        *(("failures", line) for line in say.of_failures(gathered)),
        ("store", f"{say.size(gathered.sizes['store'])}, {say.number(len(gathered.episodes.seen))} episodes"),
    ]
    shown: list[str] = []
    last = ""
    for subject, text in lines:
        line = visible(text).replace("\n", " ")
        shown.append(f"{subject if subject != last else '':<{_WIDTH}}{line if len(line) <= 300 else line[:299] + '…'}")
        last = subject
    return "\n".join(shown)
