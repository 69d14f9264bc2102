"""A whole training step of agentrl beside TRL's GRPOTrainer: the same model, tokens, optimiser; same box, same run, in turns.

    OMP_NUM_THREADS=1 python benchmarks/trl_step.py [--rounds 5] [--steps 4] [--only single tools] [--out FOLDER]

Both sides load one folder: the search demo's Qwen3 of 1.06 M weights, after a short supervised training in which it learned to
say random words in a fixed form. So every completion has the same number of tokens on both sides, of its own accord:

    single   16 prompts x 8 completions of 24 tokens
    tools    the same with three turns of 24 tokens: a call, a second call, an answer; the tool waits 50 ms

A step is: take prompts, sample, run the tools, rewards, group advantages, clipped loss, one AdamW update. Ours is
`agentrl.train` with journal, store and recorded turns. Measured is the time between the ends of two steps, CPU of all threads
and children; opening (models, trainers, the first step) is left out on both sides.
Needs `pip install "agentrl-runtime[bench]"`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from agentrl import Agent, Episode, Experiment, Policy, Team, train, workflow
from agentrl.engines.specs import Local
from agentrl.learning.optimisers import AdamW
from agentrl.metrics import StepMetrics
from agentrl.rollout import Independent
from agentrl.transformer.config import ModelConfig
from agentrl.transformer.tiny import ASSISTANT, END, TOOL, USER
from agentrl.transformer.weights import load_weights, save_weights
from agentrl_workflows.search_qa.model import CLOSE, OPEN, make_model, pieces

PROMPTS, COMPLETIONS, TURN = 16, 8, 24
RATE = 1e-5
WAIT = 0.05
"""Seconds that the tool takes."""
WORDS = 40
"""Words that a place in a completion is drawn from: so completions differ from each other at once."""
MARKS = ("?", ": ", ", ")
"""The last piece of what the model reads tells it what to say: a first call, a second call, an answer."""
FIRST_WORD = 300
"""Ids from here on are words of the atlas."""


# --- what is said ------------------------------------------------------------------------------------------------------------
def words_at(place: int) -> Sequence[str]:
    """The words that may stand at a place (0..64) of all that the model says; no word has two places."""
    start = FIRST_WORD + place * WORDS
    return pieces()[start : start + WORDS]


FORMS = (
    [[OPEN], *(words_at(place) for place in range(21)), [CLOSE], [END]],
    [[OPEN], *(words_at(place) for place in range(21, 42)), [CLOSE], [END]],
    [*(words_at(place) for place in range(42, 65)), [END]],
)
"""What is said after each mark: the pieces to draw from, token by token."""
SECOND_CALL = tuple(word for place in range(21, 42) for word in words_at(place))


def told(rng: random.Random, mark: str, count: int) -> str:
    """A user's or a tool's text: `count` words, and the mark."""
    return " ".join(rng.choice(words_at(place)) for place in range(count)) + mark


def prompts(count: int, mark: str, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [told(rng, mark, 10) for _ in range(count)]


def result_of(query: str) -> str:
    """What the tool says: eight words and what comes next, a function of the call alone."""
    return told(random.Random(query), MARKS[2 if query.startswith(SECOND_CALL) else 1], 8)


async def search(query: str) -> str:
    """Search for documents.

    Args:
        query: what to look for
    """
    await asyncio.sleep(WAIT)
    return result_of(query)


def search_sync(query: str) -> str:
    """Search for documents.

    Args:
        query: what to look for
    """
    time.sleep(WAIT)
    return result_of(query)


search_sync.__name__ = "search"


# --- the model ---------------------------------------------------------------------------------------------------------------
def speaking_model(folder: Path, steps: int = 400) -> Path:
    """The demo's model, trained until it says nothing but the forms, then made surer (final norm times 2)."""
    if (folder / "config.json").exists():
        return folder
    from tokenizers import Tokenizer
    from transformers import Qwen3ForCausalLM

    make_model(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    id_of = {piece: at for at, piece in enumerate(pieces())}
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
    rng = random.Random(1)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 4e-3 * min(1.0, (step + 1) / 20) * (1 - step / steps)
        ids, labels = [], []
        for _ in range(32):
            line, said = [], []
            for turn in rng.choice(((0, 1, 2), (2,))):
                text = (USER if not line else TOOL) + told(rng, MARKS[turn], 10 if not line else 8) + ASSISTANT
                read = tokenizer.encode(text, add_special_tokens=False).ids
                spoken = [id_of[rng.choice(choices)] for choices in FORMS[turn]]
                line += read + spoken
                said += [-100] * len(read) + spoken
            ids.append(torch.tensor(line))
            labels.append(torch.tensor(said))
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        target = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
        hidden = model.model(padded).last_hidden_state[:, :-1]
        wanted = target[:, 1:]
        logits = model.lm_head(hidden[wanted >= 0])
        loss = torch.nn.functional.cross_entropy(logits, wanted[wanted >= 0])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    tensors = load_weights(folder) | {
        name: each.detach() for name, each in model.state_dict().items() if name != "lm_head.weight"
    }
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 2
    save_weights(folder, ModelConfig.from_folder(folder).to_json(), tensors)
    return folder


# --- the two sides -----------------------------------------------------------------------------------------------------------
@dataclass
class Clock:
    """When each step ended: CPU-seconds of the process, wall seconds, trained tokens of the step."""

    ends: list[tuple[float, float, float]] = field(default_factory=list)

    def note_end(self, tokens: float) -> None:
        spent = os.times()
        cpu = time.process_time() + spent.children_user + spent.children_system
        self.ends.append((cpu, time.perf_counter(), tokens))

    def per_token(self) -> list[tuple[float, float, float]]:
        """(CPU-microseconds a trained token, wall microseconds a trained token, trained tokens) of each step but the first."""
        return [
            (1e6 * (cpu - cpu_0) / tokens, 1e6 * (wall - wall_0) / tokens, tokens)
            for (cpu_0, wall_0, _), (cpu, wall, tokens) in zip(self.ends, self.ends[1:], strict=False)
        ]


@dataclass
class ClockSink:
    """The sink that tells the clock."""

    clock: Clock

    def write(self, metrics: StepMetrics) -> None:
        self.clock.note_end(metrics.values["tokens/trained"])

    def note(self, text: str) -> None:
        raise AssertionError(text)  # a lost episode would make the sides unequal

    def close(self) -> None: ...


@workflow(Agent("one", max_tokens=TURN + 8))
async def one_turn(task: str, team: Team) -> str:
    """A prompt and an answer."""
    return (await team["one"].run(task)).text


@workflow(Agent("one", tools=[search], max_turns=3, max_tokens=TURN + 8))
async def three_turns(task: str, team: Team) -> str:
    """Two calls of the tool, then an answer."""
    return (await team["one"].run(task)).text


def halves(task: str, output: str, episode: Episode) -> float:
    """1 for every other member of a group: no advantage is 0, so nothing can be left out."""
    return float(int(episode.id.rsplit(".", 1)[1]) % 2)


def run_ours(model: Path, steps: int, *, tools: bool, checkpoint_every: int = 0, prompt_count: int = PROMPTS) -> Clock:
    """Steps of `agentrl.train`."""
    experiment = Experiment(
        three_turns if tools else one_turn,
        reward=halves,
        tasks=prompts(prompt_count * steps, MARKS[0 if tools else 2]),
        policies=Policy("one", model=model, parser="tags", optimiser=AdamW(RATE)),
        rollout=Independent(COMPLETIONS),
        engine=Local(slots=128),
        steps=steps,
        tasks_per_step=prompt_count,
        checkpoint_every=checkpoint_every,
        microbatch_tokens=32_768,
        eval_every=0,
    )
    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        asyncio.run(train(experiment, out=Path(out) / "run", sinks=(ClockSink(clock),)))
    return clock


RESPONSE = {
    "defaults": {"role": "assistant"},
    "start_anchor": ASSISTANT,
    "fields": {
        "tool_calls": {
            "open": OPEN,
            "close": CLOSE,
            "repeats": True,
            "content": "text",
            "transform": {"type": "function", "function": {"name": "search", "arguments": {"query": "{content}"}}},
        },
        "content": {"close": END, "content": "text"},
    },
}
"""How transformers reads a reply of this model."""


def run_trl(model: Path, steps: int, *, tool: Callable[..., Any] | None, **settings: Any) -> Clock:
    """Steps of GRPOTrainer. What it does by default beside the step (bf16, recomputed activations, logs) is off."""
    from datasets import Dataset
    from transformers import AutoTokenizer, PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    clock = Clock()

    class Ends(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            length = trainer._metrics["train"]["completions/mean_length"][-1]
            clock.note_end(length * PROMPTS * COMPLETIONS)

    def reward(completions: list[Any], **given: Any) -> list[float]:
        return [float(at % 2) for at in range(len(completions))]

    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    tokenizer.response_template = RESPONSE
    # TRL asks of a template that it writes the names of a call's arguments; no reply is ever rendered again, on either side
    tokenizer.chat_template = tokenizer.chat_template.replace(".values() | join(' ')", " | tojson")
    lines = prompts(PROMPTS * steps, MARKS[2 if tool is None else 0])
    with tempfile.TemporaryDirectory() as out:
        config = GRPOConfig(
            output_dir=out,
            max_steps=steps,
            per_device_train_batch_size=PROMPTS * COMPLETIONS,
            num_generations=COMPLETIONS,
            max_completion_length=TURN + 8 if tool is None else 3 * TURN + 80,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            epsilon_high=0.28,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            **settings,
        )
        trainer = GRPOTrainer(
            str(model),
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": [[{"role": "user", "content": line}] for line in lines]}),
            processing_class=tokenizer,
            tools=None if tool is None else [tool],
            callbacks=[Ends()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock


# --- the table ---------------------------------------------------------------------------------------------------------------
Run = Callable[[Path, int], Clock]


def ours(**settings: Any) -> Run:
    return lambda model, steps: run_ours(model, steps, **settings)


def theirs(**settings: Any) -> Run:
    return lambda model, steps: run_trl(model, steps, **settings)


CASES: Mapping[str, Mapping[str, Run]] = {
    "single": {
        "agentrl": ours(tools=False),
        "TRL": theirs(tool=None),
        "agentrl, checkpoint every 2nd step": ours(tools=False, checkpoint_every=2),
    },
    "tools": {
        "agentrl": ours(tools=True),
        "TRL, sync tool": theirs(tool=search_sync),
        "TRL, async tool": theirs(tool=search),
    },
}


@contextmanager
def quiet() -> Iterator[None]:
    """What the libraries say of themselves is not the table."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        yield
        logging.disable(logging.NOTSET)


def measure(model: Path, cases: Mapping[str, Run], rounds: int, steps: int) -> dict[str, list[tuple[float, float, float]]]:
    """All sides take turns, `rounds` times; the order turns around from round to round."""
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in cases}
    for number in range(rounds):
        for name in list(cases)[:: 1 if number % 2 == 0 else -1]:
            with quiet():
                found[name] += cases[name](model, steps + 1).per_token()
    return found


def spread(values: Sequence[float]) -> str:
    """The median, and where the middle half of the values lies."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.0f} ({low:.0f}-{high:.0f})"


HEADER = f"{'':<40}{'trained tokens':>15}{'CPU us/token':>22}{'x ours':>8}{'wall us/token':>22}{'x ours':>8}"


def lines(case: str, found: Mapping[str, Sequence[tuple[float, float, float]]]) -> list[str]:
    """One line a side; ratios to the first."""
    base = [statistics.median(step[at] for step in next(iter(found.values()))) for at in (0, 1)]
    made: list[str] = []
    for name, steps in found.items():
        columns = [[step[at] for step in steps] for at in (0, 1)]
        ratios = [statistics.median(column) / by for column, by in zip(columns, base, strict=True)]
        tokens = "-".join(f"{count:.0f}" for count in sorted({min(step[2] for step in steps), max(step[2] for step in steps)}))
        made.append(
            f"{case}: {name:<{38 - len(case)}}{tokens:>15}"
            f"{spread(columns[0]):>22}{ratios[0]:>8.2f}{spread(columns[1]):>22}{ratios[1]:>8.2f}"
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="measured steps of a side in a round")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--sides", nargs="+", default=[], help="only sides whose name holds one of these")
    parser.add_argument("--out", type=Path, default=Path("runs/trl"), help="where the model is made and kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with quiet():
        model = speaking_model(options.out / "model")
    table = [HEADER]
    for case in options.only:
        sides = {n: run for n, run in CASES[case].items() if not options.sides or any(part in n for part in options.sides)}
        table += lines(case, measure(model, sides, options.rounds, options.steps))
    print("\n".join(table))


if __name__ == "__main__":
    main()
