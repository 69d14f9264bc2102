"""`agentrl report`: how a run went, on one page."""

from __future__ import annotations

import argparse
from pathlib import Path

ABOUT = "how a run went, on one page: where the time went, stragglers, lag, drift, failures"


def options(report: argparse.ArgumentParser) -> None:
    """What may be written behind the command."""
    report.add_argument("folder", metavar="RUN", type=Path)
    report.add_argument("--out", type=Path, metavar="PAGE.html", help="the page (default RUN/report.html)")
    report.add_argument("--open", choices=("yes", "no"), default="no", help="show it in the browser (default no)")


def run(arguments: argparse.Namespace) -> int:
    """Writes the page; prints a summary and where it is."""
    import webbrowser

    from agentrl.report import gather, summarise, write_page

    gathered = gather(arguments.folder)
    page = write_page(gathered, arguments.out or arguments.folder / "report.html")
    print(summarise(gathered))
    print(f"page: {page}")
    if arguments.open == "yes":
        webbrowser.open(page.resolve().as_uri())
    return 0
