"""The command line: `docs/commands.md` has an example of each command.

Exit codes: 0 it worked; 1 it did not, and one line on standard error says why; 2 the command line itself is wrong; 130 Ctrl-C,
143 SIGTERM. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from agentrl.cli import credit, demo, doctor, evaluate, export, import_, replay, report, rollout, train, view
from agentrl.cli.signals import INTERRUPTED
from agentrl.errors import AgentRLError, UserError, describe, unwrapped

COMMANDS = {
    "demo": demo,
    "train": train,
    "eval": evaluate,
    "rollout": rollout,
    "replay": replay,
    "view": view,
    "credit": credit,
    "report": report,
    "export": export,
    "import": import_,
    "doctor": doctor,
}
"""A command is a module here with `ABOUT`, `options(parser)` and `run(arguments) -> exit code`, and a line in this table."""


def make_parser() -> argparse.ArgumentParser:
    """All commands; the chosen one's name is `command`."""
    parser = argparse.ArgumentParser(prog="agentrl", description="Train, run and look at LLM agents.")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure (also AGENTRL_DEBUG=1)")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for name, module in COMMANDS.items():
        command = commands.add_parser(name, help=module.ABOUT, description=module.ABOUT)
        # SUPPRESS: a flag given before the command is not undone by the command's own default
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        module.options(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; gives the exit code."""
    arguments = make_parser().parse_args(argv)
    debug = arguments.debug or os.environ.get("AGENTRL_DEBUG") == "1"
    if os.getcwd() not in sys.path:  # `package.module:name` means what `python -m` would mean by it
        sys.path.insert(0, os.getcwd())
    try:
        with unwrapped():
            return COMMANDS[arguments.command].run(arguments)
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
