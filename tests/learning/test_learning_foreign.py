"""The learner on models that transformers runs: the log-probs and gradients of its own forward, and bits that repeat."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agentrl import UserError, train
from agentrl.learning.local import LocalLearner
from agentrl.learning.lora import LoRA
from agentrl.learning.optimisers import AdamW
from agentrl.objectives import NLL, Clipped
from agentrl.setup import check
from agentrl.transformer.weights import load_weights
from agentrl_workflows.search_qa.model import make_model, pieces
from tests.train.small import small
from tests.transformer.foreign_models import KINDS, foreign, make_foreign


def open_learner(model: Path, **more: Any) -> LocalLearner:
    return LocalLearner("p", model, **({"objective": NLL(), "optimiser": AdamW(lr=1e-2)} | more))


def bytes_of(tensors: Any) -> dict[str, bytes]:
    return {name: tensor.detach().numpy().tobytes() for name, tensor in tensors.items()}


def expected(module: Any, rows: Any) -> list[list[np.ndarray[Any, Any]]]:
    """Path by path, turn by turn, from whole paths through the module."""
    found: list[list[np.ndarray[Any, Any]]] = []
    for row in rows:
        ids = torch.from_numpy(row.episode.path(row.leaf).astype(np.int64))
        with torch.no_grad():
            logits = module(ids[None]).logits[0]
        turns = []
        for trained in row.trained:
            turn = trained.turn
            end = len(row.episode.path(turn))
            at = torch.arange(end - len(turn.sampled_ids) + turn.forced, end)
            scores = (logits[at - 1] / (turn.sampling.temperature or 1.0)).log_softmax(-1)
            turns.append(scores.gather(1, ids[at, None])[:, 0].numpy())
        found.append(turns)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_logprobs_are_those_of_transformers(kind: str, batch_rows: Any, tmp_path: Path) -> None:
    learner = open_learner(make_foreign(tmp_path, kind))
    for one, other in zip(learner.logprobs(batch_rows), expected(foreign(kind), batch_rows), strict=True):
        for mine, theirs in zip(one, other, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-4)


@pytest.mark.parametrize("lora", [None, LoRA(4)])
@pytest.mark.parametrize("kind", ["gpt2", "gemma"])
def test_steps_lower_the_loss_and_repeat_to_the_bit(kind: str, lora: LoRA | None, batch_rows: Any, tmp_path: Path) -> None:
    folder = make_foreign(tmp_path / "model", kind)
    one, other = open_learner(folder, lora=lora), open_learner(folder, lora=lora)
    losses = [one.step(batch_rows).loss for _ in range(3)]
    assert losses[2] < losses[0]
    assert [other.step(batch_rows).loss for _ in range(2)] == losses[:2]
    other.save(tmp_path / "saved")
    third = open_learner(folder, lora=lora)
    third.restore(tmp_path / "saved")
    assert third.step(batch_rows).loss == losses[2]
    assert bytes_of(third.weights()) == bytes_of(one.weights())
    assert bytes_of(load_weights(tmp_path / "saved")) == bytes_of(other.weights())


def test_loss_and_gradient_do_not_depend_on_how_a_step_is_cut(batch_rows: Any, tmp_path: Path) -> None:
    folder = make_foreign(tmp_path, "gpt2")
    whole = open_learner(folder).step(batch_rows)
    cut = open_learner(folder, microbatch_tokens=40).step(batch_rows)
    assert whole.tokens < cut.tokens
    assert whole.loss == pytest.approx(cut.loss, rel=1e-5)
    assert whole.metrics["grad_norm"] == pytest.approx(cut.metrics["grad_norm"], rel=1e-4)


def test_entropy_has_a_gradient(batch_rows: Any, tmp_path: Path) -> None:
    learner = open_learner(make_foreign(tmp_path, "gemma"), objective=Clipped(entropy=0.1))
    assert learner.step(batch_rows).metrics["entropy"] > 0


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_peft_reads_an_adapter_of_transposed_matrices(batch_rows: Any, tmp_path: Path) -> None:
    from peft import PeftModel

    learner = open_learner(make_foreign(tmp_path / "model", "gpt2"), lora=LoRA(3))
    for _ in range(3):
        learner.step(batch_rows)
    learner.save(tmp_path / "saved")
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(foreign("gpt2"), tmp_path / "saved")(ids).logits
        module = foreign("gpt2")
        before = module(ids).logits
        module.load_state_dict(dict(learner.weights()), strict=False)
        assert (module(ids).logits - theirs).abs().max() < 1e-4
    assert (before - theirs).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["gpt2", "gemma"])
def test_training_on_it_repeats_to_the_bit(kind: str, tmp_path: Path) -> None:
    model = make_foreign(tmp_path / "model", kind, vocab_size=len(pieces()), std=0.05)
    for file in make_model(tmp_path / "tiny").glob("tokenizer*"):
        shutil.copy(file, model)
    losses: list[list[float]] = []
    finals: list[dict[str, bytes]] = []
    for name in ("one", "two"):
        experiment = small(model, steps=3, eval_every=0)
        result = asyncio.run(train(experiment, out=tmp_path / name, sinks=[kept := Kept()]))
        losses.append(kept.losses)
        finals.append(bytes_of(load_weights(result.policies["searcher"])))
    assert len(losses[0]) == 3
    assert losses[0] == losses[1]
    assert finals[0] == finals[1] != bytes_of(load_weights(model))


class Kept:
    """A sink that keeps losses."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def write(self, metrics: Any) -> None:
        if "loss" in metrics.values:
            self.losses.append(metrics.values["loss"])

    def note(self, text: str) -> None: ...

    def close(self) -> None: ...


def test_a_model_without_a_chat_template_is_refused_with_what_to_do(tmp_path: Path) -> None:
    model = make_foreign(tmp_path / "model", "gpt2", vocab_size=len(pieces()))
    shutil.copy(make_model(tmp_path / "tiny") / "tokenizer.json", model)
    experiment = small(model, steps=1)
    check(experiment)
    with pytest.raises(UserError, match=r"no default chat template.*put the template.*into chat_template.jinja"):
        asyncio.run(train(replace(experiment), out=tmp_path / "run", sinks=[]))
