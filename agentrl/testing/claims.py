"""Claims of a contract: what breaks one, and what is told of those that broke."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agentrl.errors import AgentRLError, UserError, describe


class ClaimBroken(AgentRLError):
    """What the part did against its contract."""


def require(holds: bool | np.bool_, message: str) -> None:
    """Breaks the claim unless it holds."""
    if not holds:
        raise ClaimBroken(message)


@dataclass(frozen=True, slots=True)
class Broken:
    """A check that failed: its name, what it claims, and what was seen."""

    name: str
    claim: str
    seen: str

    @classmethod
    def by(cls, check: Any, error: Exception, patience_s: float) -> Broken:
        """The claim is the check's docstring."""
        seen = f"nothing within {patience_s:g} s" if isinstance(error, TimeoutError) else describe(error)
        return cls(check.__name__, (check.__doc__ or "").strip(), seen)


class Nonconforming(AssertionError):
    """Every claim of a contract that a part of yours broke."""

    contract = ""

    def __init__(self, name: str, broken: Sequence[Broken], held: int) -> None:
        self.broken = tuple(broken)
        lines = [f"{name} breaks {len(broken)} of {len(broken) + held} claims of the {self.contract} contract:"]
        lines += [f"  {one.name}: {one.claim}\n    seen: {one.seen}" for one in broken]
        super().__init__("\n".join(lines))


def refuse_unknown(kind: str, asked: Collection[str], there: Collection[str]) -> None:
    """`UserError` if a check is asked for that there is not."""
    unknown = set(asked) - set(there)
    if unknown:
        raise UserError(f"no {kind} check is called {', '.join(sorted(unknown))}; there are {', '.join(there)}")
