"""What runs inside a sandbox. The standard library alone: no line of agentrl is there."""
