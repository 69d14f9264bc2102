"""The table of estimators in docs/credit.md is what the code says."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from agentrl.credit import Needs
from agentrl.resolve import load_file

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "credit_table.py"


def test_the_table_is_not_stale() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@dataclass(frozen=True)
class Nameless:
    """A_i = R_i - 1 (Nobody 2026)."""

    needs: ClassVar[Needs] = Needs()


@dataclass(frozen=True)
class Wordy:
    """Rewards, as they are (arXiv 2601.00001)."""

    needs: ClassVar[Needs] = Needs()


@dataclass(frozen=True)
class Whole:
    """By Some et al. 2026. A_i = k |R_i| (Some et al. 2026, arXiv 2601.00001). More."""

    k: float = 2.0
    needs: ClassVar[Needs] = Needs(state=True, forks=True, probes=("value",), group=3)


@pytest.mark.parametrize(("kind", "lacks"), [(Nameless, "paper"), (Wordy, "formula")])
def test_a_docstring_without_paper_or_formula_is_refused(kind: Any, lacks: str) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__}: the docstring gives no {lacks}"):
        list(load_file(SCRIPT).row("mine", kind))


def test_a_row_has_the_fields_the_paper_the_needs_and_the_formula() -> None:
    assert list(load_file(SCRIPT).row("whole", Whole)) == [
        "`whole`",
        "`Whole(k=2.0)`",
        "[2601.00001](https://arxiv.org/abs/2601.00001)",
        "groups of 3, a plan that forks, state keys, a critic, or a probe `value`",
        "A_i = k \\|R_i\\|",
    ]
