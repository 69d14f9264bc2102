"""`agentrl doctor`: what may be wrong with the installation, a model, a run or a running server."""

from __future__ import annotations

import argparse
from pathlib import Path

ABOUT = "what may be wrong with the installation, a model, a run or a running server"


def options(doctor: argparse.ArgumentParser) -> None:
    """What may be written behind the command."""
    doctor.add_argument("model", metavar="MODEL", nargs="?", type=Path, help="a model folder: tries template and engine")
    doctor.add_argument("--engine", metavar="URL", help="a running SGLang or vLLM server: compares it with MODEL")
    doctor.add_argument("--run", metavar="DIR", type=Path, dest="folder", help="a run: reads its store and checkpoints")


def run(arguments: argparse.Namespace) -> int:
    """Prints what was found; fails if there is a problem."""
    from agentrl.doctor import diagnose

    report = diagnose(arguments.model, run=arguments.folder, engine=arguments.engine)
    print(report)
    return 0 if report.ok else 1
