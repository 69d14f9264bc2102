"""`agentrl eval`: success on the held-out tasks."""

from __future__ import annotations

import argparse
import sys

from agentrl.cli.arguments import TARGET, add_settings, add_weights, open_experiment

ABOUT = "success on the held-out tasks"


def options(evaluate: argparse.ArgumentParser) -> None:
    """What may be written behind the command."""
    evaluate.add_argument("target", metavar="TARGET", help=TARGET)
    add_weights(evaluate)
    add_settings(evaluate)


def run(arguments: argparse.Namespace) -> int:
    """Prints success on the held-out tasks; fails if no episode came to an end."""
    import asyncio

    from agentrl.evaluate import evaluate as run_evaluation

    experiment = open_experiment(arguments.target, arguments.settings)
    result = asyncio.run(run_evaluation(experiment, policies=arguments.policies))
    lost = f", {result.lost} lost" if result.lost else ""
    print(f"success {result.success:.3f} over {result.episodes} episodes{lost}")
    print(f"{result.turns:.2f} turns and {result.tool_calls:.2f} tool calls an episode")
    if not result.episodes:
        print(f"agentrl: no episode came to an end ({result.lost} lost); `agentrl rollout` shows why", file=sys.stderr)
        return 1
    return 0
