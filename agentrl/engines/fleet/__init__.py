"""Several SGLang servers as one engine, behind SGLang's own router."""

from agentrl.engines.fleet.engine import SGLangFleet
from agentrl.engines.fleet.spec import open_fleet

__all__ = ["SGLangFleet", "open_fleet"]
