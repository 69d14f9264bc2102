"""A fake SGLang for tests: the recorded wire over a real, tiny model."""

from agentrl.engines.sglang.fake.server import FakeSGLang
from agentrl.engines.sglang.fake.toy import ToyModel, random_weights, save_adapter

__all__ = ["FakeSGLang", "ToyModel", "random_weights", "save_adapter"]
