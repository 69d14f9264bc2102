"""A running vLLM server as an engine. Nothing of vLLM is imported."""

from agentrl.engines.vllm.client import VLLMEngine

__all__ = ["VLLMEngine"]
