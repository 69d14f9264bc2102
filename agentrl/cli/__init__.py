"""The command line: `agentrl train | eval | rollout | replay | view | doctor`. `docs/commands.md` has an example of each.

Exit codes: 0 it worked; 1 it did not, and one line on standard error says why; 2 the command line itself is wrong; 130 Ctrl-C,
143 SIGTERM. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from agentrl.cli import commands
from agentrl.cli.parser import make_parser
from agentrl.cli.signals import INTERRUPTED
from agentrl.errors import AgentRLError, UserError, describe, unwrapped

COMMANDS = {
    "train": commands.train,
    "eval": commands.evaluate,
    "rollout": commands.rollout,
    "replay": commands.replay,
    "view": commands.view,
    "doctor": commands.doctor,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; gives the exit code."""
    arguments = make_parser().parse_args(argv)
    debug = arguments.debug or os.environ.get("AGENTRL_DEBUG") == "1"
    if os.getcwd() not in sys.path:  # `package.module:name` means what `python -m` would mean by it
        sys.path.insert(0, os.getcwd())
    try:
        with unwrapped():
            return COMMANDS[arguments.command](arguments)
    except AgentRLError as error:
        if debug:
            raise
        print(f"agentrl: {_one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("agentrl: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _one_line(error: AgentRLError) -> str:
    text = str(error) if isinstance(error, UserError) else describe(error)
    return "; ".join(line.strip() for line in text.splitlines() if line.strip()) or type(error).__name__
