"""SGLang over HTTP: the client, and a fake server for tests that speaks its wire."""

from agentrl.engines.sglang.client import SGLangEngine
from agentrl.engines.sglang.greeting import KNOWN_VERSIONS

__all__ = ["KNOWN_VERSIONS", "SGLangEngine"]
