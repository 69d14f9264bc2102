"""KL against a frozen reference: its log-probs are those of its own learner, and nothing else of a step changes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agentrl.episode import Column
from agentrl.errors import LearnerError, UserError
from agentrl.learning import Row, TrainedTurn, relearn, to_stored
from agentrl.learning.local import LocalLearner
from agentrl.learning.lora import LoRA
from agentrl.learning.vocabulary import check_same_vocabulary
from agentrl.objectives import Clipped
from agentrl.store.contract import StoredStep
from agentrl.store.sqlite import SQLiteStore
from agentrl.transformer.weights import init_weights, save_weights
from tests.learning.conftest import make_config
from tests.learning.test_learning_replay import named, record

KL = Clipped(kl=0.2, kl_form="k2")


@pytest.fixture(scope="session")
def other(tmp_path_factory) -> Path:
    """Another policy with the same tokens: other weights and another depth."""
    folder = tmp_path_factory.mktemp("reference")
    save_weights(folder, make_config(layers=1), init_weights(make_config(layers=1), 5, std=0.2))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def recorded(rows, values):
    """The rows with the reference's log-probs as columns of their turns."""
    given = []
    for row, own in zip(rows, values, strict=True):
        turns = {
            each.turn.id: replace(each.turn, columns={"reference": Column("reference", logprobs)})
            for each, logprobs in zip(row.trained, own, strict=True)
        }
        episode = replace(row.episode, turns=tuple(turns.get(turn.id, turn) for turn in row.episode.turns))
        given.append(
            Row(episode, episode.by_id[row.leaf.id], tuple(TrainedTurn(turns[t.turn.id], t.advantage) for t in row.trained))
        )
    return given


@pytest.mark.parametrize("budget", [16384, 30])
def test_the_kl_is_against_the_references_own_logprobs(model, other, batch_rows, budget):
    learner = LocalLearner("p", model, KL, reference=other, microbatch_tokens=budget)
    stats = learner.step(batch_rows)
    wanted = LocalLearner("p", model, KL)
    by_hand = wanted.step(recorded(batch_rows, LocalLearner("p", other, KL).logprobs(batch_rows)))
    assert stats.loss == pytest.approx(by_hand.loss, rel=1e-5)
    assert stats.metrics["kl/reference"] == pytest.approx(by_hand.metrics["kl/reference"], rel=1e-5) != 0
    assert stats.metrics["grad_norm"] == pytest.approx(by_hand.metrics["grad_norm"], rel=1e-4)


def test_against_itself_the_kl_is_nothing_until_the_policy_moves(model, batch_rows):
    learner = LocalLearner("p", model, KL, reference=model)
    assert learner.step(batch_rows).metrics["kl/reference"] == pytest.approx(0.0, abs=1e-9)
    assert learner.step(batch_rows).metrics["kl/reference"] > 1e-6


def test_a_strong_kl_pulls_the_policy_to_the_reference(model, other, batch_rows):
    idle = [replace(row, trained=tuple(TrainedTurn(t.turn, 0 * t.advantage) for t in row.trained)) for row in batch_rows]
    learner = LocalLearner("p", model, Clipped(kl=1.0, kl_form="k3"), reference=other)
    seen = [learner.step(idle).metrics["kl/reference"] for _ in range(8)]
    assert seen[-1] < 0.8 * seen[0]


def test_adapters_share_the_weights_of_their_base_with_the_reference(model, other, batch_rows):
    learner = LocalLearner("p", model, KL, lora=LoRA(2), reference=model)
    assert learner._reference._weights is learner._weights
    assert learner.step(batch_rows).metrics["kl/reference"] == pytest.approx(0.0, abs=1e-9)
    assert learner.step(batch_rows).metrics["kl/reference"] > 1e-9
    apart = LocalLearner("p", model, KL, lora=LoRA(2), reference=other)
    assert apart.step(batch_rows).metrics["kl/reference"] > 1e-3


def test_what_was_recorded_comes_before_what_is_computed(model, other, batch_rows):
    own = LocalLearner("p", model, KL).logprobs(batch_rows)
    learner = LocalLearner("p", model, KL, reference=other)
    assert learner.step(recorded(batch_rows, own)).metrics["kl/reference"] == pytest.approx(0.0, abs=1e-9)


def test_an_objective_without_kl_asks_the_reference_nothing(model, other, batch_rows):
    plain, beside = LocalLearner("p", model, Clipped()), LocalLearner("p", model, Clipped(), reference=other)
    assert plain.step(batch_rows) == beside.step(batch_rows)
    assert plain.version == beside.version


def test_without_a_reference_the_step_is_refused_and_changes_nothing(model, batch_rows):
    learner = LocalLearner("p", model, KL)
    before = learner.version
    with pytest.raises(UserError, match=r"give the experiment \(or LocalLearner\) a reference"):
        learner.step(batch_rows)
    assert learner.version == before and learner.updates == 0


async def test_learning_again_with_the_reference_gives_the_same_weights(model, other, tree, rows_of, tmp_path):
    episodes = [named(tree(f"e{i}", i, (None, 0, 0, 1), prompt=(3, 4))) for i in range(4)]
    rows = [row for seed, episode in enumerate(episodes) for row in rows_of(episode, seed)]
    learner = LocalLearner("p", model, KL, reference=other)
    with SQLiteStore(tmp_path / "store.db") as store:
        for episode in episodes:
            record(store, episode)
        for batch, part in enumerate((rows[:6], rows[6:])):
            store.commit_step(StoredStep("p", batch, to_stored(part), learner.version))
            learner.step(part)
        await store.flush()
        assert relearn(store, "p", LocalLearner("p", model, KL, reference=other)) == learner.version
        with pytest.raises(LearnerError, match="stored step 1 of p began from"):
            relearn(store, "p", LocalLearner("p", model, KL, reference=model))


def vocabulary(folder: Path, tokens: list[str], **more) -> Path:
    folder.mkdir()
    words = {token: number for number, token in enumerate(tokens)}
    (folder / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "model": {"type": "WordLevel", "vocab": words, "unk_token": tokens[0]}, **more})
    )
    return folder


def test_a_reference_of_other_tokens_is_refused_and_one_that_only_splits_otherwise_is_not(tmp_path):
    ours = vocabulary(tmp_path / "ours", ["a", "b", "c"])
    check_same_vocabulary(ours, ours)
    check_same_vocabulary(ours, vocabulary(tmp_path / "same", ["a", "b", "c"], pre_tokenizer={"type": "Whitespace"}))
    for name, tokens, count in (("moved", ["a", "c", "b"], 2), ("more", ["a", "b", "c", "d"], 1), ("fewer", ["a", "b"], 1)):
        with pytest.raises(UserError, match=rf"another vocabulary than \S+ours \({count} tokens differ\).*of the same family"):
            check_same_vocabulary(ours, vocabulary(tmp_path / name, tokens))
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"none has no tokenizer.json"):
        check_same_vocabulary(ours, tmp_path / "none")


def test_a_learner_refuses_a_reference_of_other_tokens(model, other, tmp_path):
    strange = Path(shutil.copytree(other, tmp_path / "strange"))
    shutil.copy(vocabulary(tmp_path / "words", ["a", "b"]) / "tokenizer.json", strange / "tokenizer.json")
    mine = Path(shutil.copytree(model, tmp_path / "mine"))
    shutil.copy(vocabulary(tmp_path / "others", ["b", "a"]) / "tokenizer.json", mine / "tokenizer.json")
    with pytest.raises(UserError, match="another vocabulary"):
        LocalLearner("p", mine, KL, reference=strange)


def test_an_id_that_the_reference_does_not_have_is_refused(model, tree, rows_of, tmp_path):
    small = tmp_path / "small"
    save_weights(small, make_config(vocab_size=40), init_weights(make_config(vocab_size=40), 1))
    (small / "tokenizer.json").write_text("{}")
    rows = rows_of(tree("e", 0, (None, 0, 1)))
    assert max(int(np.max(turn.sampled_ids)) for turn in rows[0].episode.turns) >= 40
    with pytest.raises(UserError, match=r"reference .*small: token id \d+ is outside the vocabulary of 40"):
        LocalLearner("p", model, KL, reference=small).step(rows)
