"""Backends that keep the contract of `agentrl.sandbox`."""
