"""Bundled workflows, one folder each. A catalogue: it imports `agentrl`, which never imports it."""
