"""The commands that start engine servers. Without `gpus` a server runs on the CPU, for small models and tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from agentrl.engines.launch.server import Command, free_port
from agentrl.errors import UserError

SGLANG_PYTHON, VLLM_PYTHON = "AGENTRL_SGLANG_PYTHON", "AGENTRL_VLLM_PYTHON"
"""Name the Python of the engine's own environment, where it is not ours."""

# The layers of a machine without AMX are torch's own; without --sleep-on-idle an idle server takes a third of a core.
SGLANG_ON_CPU = (
    "--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch", "--grammar-backend", "none",
    "--disable-cuda-graph", "--dtype", "float32", "--mem-fraction-static", "0.1", "--max-total-tokens", "20000",
    "--skip-server-warmup", "--sleep-on-idle",
)  # fmt: skip
VLLM_ON_CPU = ("--dtype", "float32", "--enforce-eager", "--no-enable-chunked-prefill")
ONE_THREAD = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


def sglang_command(
    model: Path, *, number: int = 0, python: str = "", tp: int = 1, gpus: str = "", args: Sequence[str] = ()
) -> Command:
    """Server `number` of several with the same settings, on a free port of this machine.

    `python`: of SGLang's environment; else what AGENTRL_SGLANG_PYTHON names, else our own. `gpus` ("0-3", "0,2") are dealt
    out in order, `tp` to each server. `args` come last, so they win.
    """
    port = free_port()
    arguments = (
        _python(python, SGLANG_PYTHON), "-m", "sglang.launch_server", "--model-path", str(model), "--host", "127.0.0.1",
        "--port", str(port), "--tp-size", str(tp), *(() if gpus else SGLANG_ON_CPU), *args,
    )  # fmt: skip
    environment = (
        _visible(gpus, number, tp) if gpus else {"SGLANG_USE_CPU_ENGINE": "1", "CUDA_VISIBLE_DEVICES": "", **ONE_THREAD}
    )
    # It holds no state, and takes the end of its own processes for a crash, which it would examine for five seconds.
    return Command(f"sglang-{number}", arguments, f"http://127.0.0.1:{port}", "/model_info", environment, grace_s=0)


def vllm_command(
    model: Path, *, number: int = 0, python: str = "", tp: int = 1, gpus: str = "", args: Sequence[str] = ()
) -> Command:
    """The same for vLLM, with the log-probs and the routes that training needs."""
    port = free_port()
    arguments = (
        _python(python, VLLM_PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--host", "127.0.0.1",
        "--port", str(port), "--tensor-parallel-size", str(tp), "--logprobs-mode", "processed_logprobs", "--enable-scale-out",
        *(() if gpus else VLLM_ON_CPU), *args,
    )  # fmt: skip
    environment = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}
    if gpus:
        environment |= _visible(gpus, number, tp)
    else:
        environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1", **ONE_THREAD}
    return Command(f"vllm-{number}", arguments, f"http://127.0.0.1:{port}", "/health", environment)


def gpu_numbers(text: str) -> tuple[int, ...]:
    """ "0-3" and "0,2,5" as numbers."""
    try:
        numbers: list[int] = []
        for part in text.split(","):
            first, dash, last = part.partition("-")
            numbers += range(int(first), int(last if dash else first) + 1)
    except ValueError as error:
        raise UserError(f'gpus={text!r} names no GPUs; give "0-3" or "0,2"') from error
    if not numbers or len(set(numbers)) < len(numbers):
        raise UserError(f"gpus={text!r} names no GPU, or one twice")
    return tuple(numbers)


def _visible(gpus: str, number: int, tp: int) -> dict[str, str]:
    own = gpu_numbers(gpus)[number * tp : (number + 1) * tp]
    if len(own) < tp:
        raise UserError(f"gpus={gpus!r} are too few: server {number} of tp={tp} needs {tp} after those before it; name more")
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, own))}


def _python(given: str, variable: str) -> str:
    python = given or os.environ.get(variable) or sys.executable
    if not Path(python).is_file():
        raise UserError(f"{python!r} is no Python to start the engine with; pass python=... or set {variable}")
    return python
