"""A fake vLLM for tests: the recorded wire over a real, tiny model."""

from agentrl.engines.vllm.fake.server import FakeVLLM

__all__ = ["FakeVLLM"]
