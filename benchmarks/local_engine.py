"""The local engine beside transformers on the CPU: useful tokens per CPU-second, one thread, a 0.9 M-parameter Qwen3.

    OMP_NUM_THREADS=1 python benchmarks/local_engine.py [--repeats 3]

One ragged list of requests for all rows. Only tokens that a request asked for count: a static batch goes on until its
longest request is done. CPU time is that of the whole process; the best of the repeats is shown. All rows give log-probs.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from agentrl.engines.contract import GenerateRequest
from agentrl.engines.local import LocalEngine
from agentrl.episode import IntArray, Sampling
from agentrl.transformer.config import ModelConfig
from agentrl.transformer.weights import init_weights, save_weights

CONFIG = ModelConfig(
    architecture="Qwen3ForCausalLM",
    vocab_size=2048,
    hidden_size=128,
    layers=3,
    heads=4,
    kv_heads=4,
    head_dim=32,
    intermediate_size=384,
    max_positions=2048,
    tied=True,
)


@dataclass(frozen=True)
class Wanted:
    """One request: its prompt and how many tokens it gets."""

    prompt: IntArray
    tokens: int


def requests(count: int, seed: int = 0) -> list[Wanted]:
    random = np.random.default_rng(seed)
    return [
        Wanted(random.integers(1, CONFIG.vocab_size, random.integers(16, 97)).astype(np.int32), int(random.integers(8, 65)))
        for _ in range(count)
    ]


def best(repeats: int, run: Callable[[], int]) -> tuple[float, int]:
    """(tokens per CPU-second of the best repeat, tokens); one unmeasured run goes before."""
    run()
    rates, tokens = [], 0
    for _ in range(repeats):
        start = time.process_time()
        tokens = run()
        rates.append(tokens / (time.process_time() - start))
    return max(rates), tokens


async def ask(engine: LocalEngine, index: int, wanted: Wanted) -> int:
    prompt = (wanted.prompt,)
    done = await engine.generate(GenerateRequest(str(index), "policy", prompt, Sampling(max_tokens=wanted.tokens), seed=index))
    return len(done.ids)


def ours(folder: Path, wanted: list[Wanted], repeats: int, slots: int = 64) -> tuple[float, int]:
    async def one_pass(engine: LocalEngine) -> int:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(engine, index, each)) for index, each in enumerate(wanted)]
        return sum(task.result() for task in tasks)

    with asyncio.Runner() as runner:
        engine = LocalEngine(folder, slots=slots, threads=1, prefix_cache_tokens=0)
        runner.run(engine.__aenter__())
        try:
            return best(repeats, lambda: runner.run(one_pass(engine)))
        finally:
            runner.run(engine.__aexit__())


def static(model: transformers.PreTrainedModel, wanted: list[Wanted], repeats: int, *, batch: int = 64) -> tuple[float, int]:
    """`generate` on padded batches; log-probs from `output_logits`."""

    def run() -> int:
        useful = 0
        for begin in range(0, len(wanted), batch):
            part = wanted[begin : begin + batch]
            longest = max(len(each.prompt) for each in part)
            ids = torch.zeros(len(part), longest, dtype=torch.long)
            mask = torch.zeros(len(part), longest, dtype=torch.long)
            for row, each in enumerate(part):
                ids[row, longest - len(each.prompt) :] = torch.from_numpy(each.prompt)
                mask[row, longest - len(each.prompt) :] = 1
            config = GenerationConfig(
                max_new_tokens=max(each.tokens for each in part),
                do_sample=True,
                top_k=0,
                output_logits=True,
                return_dict_in_generate=True,
                pad_token_id=0,
            )
            out = model.generate(ids, attention_mask=mask, generation_config=config)
            logits = torch.stack(out.logits, 1)
            logits.log_softmax(-1).gather(2, out.sequences[:, longest:, None])
            useful += sum(each.tokens for each in part)
        return useful

    with torch.inference_mode():
        return best(repeats, run)


def continuous(model: transformers.PreTrainedModel, wanted: list[Wanted], repeats: int) -> tuple[float, int]:
    """`generate_batch` with one persistent manager. It takes one limit for all, so requests go by their number of tokens."""
    config = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=64, eos_token_id=-1, pad_token_id=0)
    batching = ContinuousBatchingConfig(num_blocks=512, max_batch_tokens=1024, return_logprobs=True, max_requests_per_batch=64)
    manager = model.init_continuous_batching(generation_config=config, continuous_batching_config=batching)
    manager.start()

    def run() -> int:
        for index, each in enumerate(wanted):
            manager.add_request(each.prompt.tolist(), request_id=f"r{index}", max_new_tokens=each.tokens)
        useful = done = 0
        while done < len(wanted):
            result = manager.get_result(timeout=60)
            if result is not None and result.is_finished():
                assert len(result.logprobs) == len(result.generated_tokens)
                useful, done = useful + len(result.generated_tokens), done + 1
        return useful

    try:
        return best(repeats, run)
    finally:
        manager.stop(block=True)


async def turns(folder: Path, kept: int | None, *, episodes: int = 32, length: int = 6) -> tuple[float, int, int]:
    """(CPU-seconds, sampled tokens, cached tokens) of episodes that go on from their own path with 24 new ids a turn."""
    random = np.random.default_rng(1)
    starts = [random.integers(1, CONFIG.vocab_size, 120).astype(np.int32) for _ in range(episodes)]
    answers = random.integers(1, CONFIG.vocab_size, (episodes, length, 24)).astype(np.int32)

    async def episode(engine: LocalEngine, index: int) -> tuple[int, int]:
        path, sampled, cached = starts[index], 0, 0
        for turn in range(length):
            request = GenerateRequest(f"{index}.{turn}", "policy", (path,), Sampling(max_tokens=24), seed=index * 100 + turn)
            done = await engine.generate(request)
            path = np.concatenate((path, done.ids, answers[index, turn]))
            sampled, cached = sampled + len(done.ids), cached + done.cached_tokens
        return sampled, cached

    async with LocalEngine(folder, threads=1, prefix_cache_tokens=kept) as engine:
        start = time.process_time()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(episode(engine, index)) for index in range(episodes)]
        seconds = time.process_time() - start
    return seconds, sum(task.result()[0] for task in tasks), sum(task.result()[1] for task in tasks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--only", choices=["ours", "turns"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    wanted = requests(options.requests)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_weights(folder, CONFIG, init_weights(CONFIG, seed=0, std=0.05))
        print(f"{platform.machine()}, torch {torch.__version__}, transformers {transformers.__version__}, 1 thread, float32")
        if options.only != "turns":
            rows = {"local engine, invariant": ours(folder, wanted, options.repeats)}
            if options.only is None:
                model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
                rows["transformers generate, batches of 64"] = static(model, wanted, options.repeats)
                rows["transformers continuous batching"] = continuous(model, wanted, options.repeats)
            print(f"\n{len(wanted)} requests, prompts 16-96, 8-64 new tokens, log-probs, temperature 1")
            print(f"{'':40s}{'useful tokens':>15s}{'per CPU-second':>16s}{'ours / it':>11s}")
            mine = rows["local engine, invariant"][0]
            for label, (rate, tokens) in rows.items():
                print(f"{label:40s}{tokens:15d}{rate:16.0f}{mine / rate:11.2f}")
        print("\n32 episodes of 6 turns (120 ids, then 24 sampled and 24 added a turn)")
        print(f"{'':40s}{'CPU-seconds':>15s}{'cached tokens':>16s}{'off / it':>11s}")
        off = 0.0
        for label, kept in (("prefix reuse off", 0), ("prefix reuse on", None)):
            seconds, _, cached = min(asyncio.run(turns(folder, kept)) for _ in range(options.repeats))
            off = off or seconds
            print(f"{label:40s}{seconds:15.2f}{cached:16d}{off / seconds:11.2f}")


if __name__ == "__main__":
    main()
