"""What a user runs on parts of their own: conformance checks, each claim named, all failures told at once."""

from agentrl.testing.engine import EngineNonconforming, check_engine, check_same
from agentrl.testing.sandbox import SandboxNonconforming, check_sandbox

__all__ = ["EngineNonconforming", "SandboxNonconforming", "check_engine", "check_same", "check_sandbox"]
