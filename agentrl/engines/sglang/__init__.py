"""SGLang over HTTP: the client, and a fake server for tests that speaks its wire."""

from agentrl.engines.sglang.client import KNOWN_VERSIONS, SGLangEngine

__all__ = ["KNOWN_VERSIONS", "SGLangEngine"]
