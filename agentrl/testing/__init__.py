"""What a user runs on parts of their own: conformance checks, each claim named, all failures told at once."""

from agentrl.testing.engine import EngineNonconforming, check_engine, check_same

__all__ = ["EngineNonconforming", "check_engine", "check_same"]
