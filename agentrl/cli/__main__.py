"""`python -m agentrl.cli`, where the command `agentrl` is not on the path."""

import sys

from agentrl.cli import main

sys.exit(main())
