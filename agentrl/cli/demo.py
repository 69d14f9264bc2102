"""`agentrl demo`: trains a real agent on this machine's CPU, and shows what it learned."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from agentrl.errors import UserError

ABOUT = "train a real agent on this machine's CPU, in minutes"


def options(demo: argparse.ArgumentParser) -> None:
    """What may be written behind the command."""
    demo.add_argument("name", metavar="NAME", nargs="?", default="search_qa", help="which demo (default search_qa)")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="its folder (default runs/demo)")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--fresh", action="store_true", help="begin anew where a demo has run")
    demo.add_argument("--smoke", action="store_true", help="a few steps, to see that everything runs")


def run(arguments: argparse.Namespace) -> int:
    """Hands over to the demo: a function of (argv), by entry point `agentrl.demos`."""
    from agentrl.resolve import resolve

    lacking = [name for name in ("torch", "safetensors", "tokenizers") if importlib.util.find_spec(name) is None]
    if lacking:
        raise UserError(
            f"the demo needs {', '.join(lacking)}; install a CPU build of torch first (pip install torch --index-url "
            'https://download.pytorch.org/whl/cpu), then pip install "agentrl-runtime[demo]"'
        )
    begin = resolve(arguments.name, group="agentrl.demos")
    flags = [f"--{name}" for name in ("fresh", "smoke") if getattr(arguments, name)]
    return begin(["--out", str(arguments.out), "--seed", str(arguments.seed), *flags])
