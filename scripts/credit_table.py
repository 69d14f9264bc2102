"""Writes the table of all estimators into docs/credit.md, from the code; with --check it only says whether it is stale.

    python scripts/credit_table.py [--check]

A row is a short name with its class and defaults, the paper, what `needs` asks for, and the formula: the first sentence of the
docstring that has one.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from agentrl.credit import ESTIMATORS
from agentrl.credit.contract import Estimator, Needs

DOC = Path(__file__).resolve().parents[1] / "docs" / "credit.md"
BEGIN, END = "<!-- methods: begin (scripts/credit_table.py) -->", "<!-- methods: end -->"
PAPER = re.compile(r"arXiv (\d{4}\.\d{5})")
FORMULA = re.compile(r"\bA\S*(?:\([^)]*\))? = ")


def table() -> str:
    """The estimators by short name; Markdown. `ValueError` for one whose docstring lacks paper or formula."""
    lines = ["| `--credit` | value | paper | needs | advantage |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {' | '.join(row(name, kind))} |" for name, kind in sorted(ESTIMATORS.items())]
    return "\n".join(lines)


def row(name: str, kind: type[Estimator]) -> Iterator[str]:
    """The cells of one estimator."""
    said = inspect.getdoc(kind) or ""
    paper = PAPER.search(said)
    if paper is None or not FORMULA.search(said):
        lacks = "paper (arXiv NNNN.NNNNN)" if paper is None else "formula (A = ...)"
        raise ValueError(f"{kind.__name__}: the docstring gives no {lacks}; write it there, for docs/credit.md is made from it")
    yield f"`{name}`"
    yield f"`{kind.__name__}({', '.join(settings(kind))})`"
    yield f"[{paper[1]}](https://arxiv.org/abs/{paper[1]})"
    yield ", ".join(wanted(kind.needs)) or "nothing"
    yield formula(said).replace("|", "\\|")


def settings(kind: type[Estimator]) -> Iterator[str]:
    """Its fields with their defaults, as they are written."""
    for field in fields(kind):  # pyright: ignore[reportArgumentType]
        value = getattr(kind(), field.name)
        made = hasattr(value, "needs") and value == type(value)()
        yield f"{field.name}={type(value).__name__ + '()' if made else repr(value)}"


def wanted(needs: Needs) -> Iterator[str]:
    """What a run must give, in words."""
    if needs.group > 1:
        yield f"groups of {needs.group}"
    if needs.forks:
        yield "a plan that forks"
    if needs.state:
        yield "state keys"
    if needs.entropy:
        yield "entropies"
    if needs.reference_rewards:
        yield "reference rewards"
    for name in needs.probes:
        yield "a critic, or a probe `value`" if name == "value" else f"a probe `{name}`"


def formula(said: str) -> str:
    """The first sentence with a formula, without the paper in brackets."""
    sentences = re.split(r"(?<!\bal)(?<!\beq)(?<!\beqs)\. ", " ".join(said.split()))
    return re.sub(r" \([^()]*arXiv[^()]*\)", "", next(filter(FORMULA.search, sentences))).removesuffix(".")


def main() -> str | int:
    """The program; what it gives is its exit status, or what it says when it fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if the document is stale")
    options = parser.parse_args()
    text = DOC.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    made = f"{before}{BEGIN}\n{table()}\n{END}{after}"
    if options.check:
        return f"{DOC.name} is stale; python scripts/credit_table.py writes it anew" if made != text else 0
    DOC.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
