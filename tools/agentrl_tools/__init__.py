"""Tools for agents, one file each. A catalogue: it imports `agentrl`, which never imports it."""
