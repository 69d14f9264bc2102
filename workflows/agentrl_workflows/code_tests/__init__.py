"""Programming with hidden tests: an agent writes and runs code in a sandbox, then answers with a program."""
