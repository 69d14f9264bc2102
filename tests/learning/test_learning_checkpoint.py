from __future__ import annotations

import json
import logging
import warnings

import numpy as np
import pytest
import torch

from agentrl.errors import LearnerError
from agentrl.learning import AdamW, Linear, Muon, checkpoint
from agentrl.learning.local import LocalLearner
from agentrl.objectives import Clipped


def opened(model, optimiser=None, **options):
    return LocalLearner("p", model, Clipped(), optimiser=optimiser or Muon(schedule=Linear(10)), **options)


@pytest.mark.parametrize("optimiser", [Muon(schedule=Linear(10)), AdamW(1e-3, schedule=Linear(10, warmup=2))])
def test_a_restored_learner_goes_on_to_the_bit(model, batch_rows, tmp_path, optimiser):
    whole = opened(model, optimiser)
    first = opened(model, optimiser)
    for learner in (whole, first):
        for _ in range(2):
            learner.step(batch_rows)
    first.save(tmp_path / "checkpoint")
    second = opened(model, optimiser, lineage="another")
    second.restore(tmp_path / "checkpoint")
    assert second.version == whole.version
    for _ in range(2):
        assert repr(second.step(batch_rows).loss) == repr(whole.step(batch_rows).loss)
    assert second.version == whole.version
    assert second.updates == 4
    for name, tensor in whole.weights().items():
        assert torch.equal(second.weights()[name], tensor), name


def test_only_the_weights_are_named_as_weights(model, batch_rows, tmp_path):
    learner = opened(model)
    learner.step(batch_rows)
    learner.save(tmp_path / "saved")
    assert [path.name for path in (tmp_path / "saved").glob("*.safetensors")] == ["model.safetensors"]


def test_transformers_loads_what_was_saved(model, batch_rows, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoModelForCausalLM
    learner = opened(model)
    learner.step(batch_rows)
    learner.save(tmp_path / "checkpoint")
    assert (tmp_path / "checkpoint" / "tokenizer.json").read_text() == "{}"
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint")
    found = peer.state_dict()
    for name, tensor in learner.weights().items():
        assert torch.equal(found[name], tensor), name
    row = batch_rows[0]
    path = torch.from_numpy(row.episode.path(row.leaf).astype(np.int64))
    with torch.no_grad():
        scores = peer(path[None]).logits[0].log_softmax(-1)
    start = len(row.trained[0].turn.context_ids)
    expected = [scores[start - 1 + i, token].item() for i, token in enumerate(row.trained[0].turn.sampled_ids.tolist())]
    np.testing.assert_allclose(learner.logprobs([row])[0][0], expected, atol=1e-5)


def test_a_checkpoint_is_also_a_model_to_begin_from(model, batch_rows, tmp_path):
    learner = opened(model)
    learner.step(batch_rows)
    learner.save(tmp_path / "checkpoint")
    fresh = opened(tmp_path / "checkpoint")
    assert fresh.version.digest == learner.version.digest
    assert fresh.version.step == fresh.updates == 0


def test_saving_again_replaces_the_folder_and_leaves_nothing_beside_it(model, batch_rows, tmp_path):
    learner = opened(model)
    learner.save(tmp_path / "checkpoint")
    learner.step(batch_rows)
    learner.save(tmp_path / "checkpoint")
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]
    other = opened(model)
    other.restore(tmp_path / "checkpoint")
    assert other.version == learner.version


@pytest.mark.parametrize("stage", ["save_file", "_digest", "_sync", "_replace"])
def test_a_disk_that_fails_midway_leaves_the_old_folder_whole(model, batch_rows, tmp_path, monkeypatch, stage):
    learner = opened(model)
    learner.save(tmp_path / "checkpoint")
    old = learner.version
    learner.step(batch_rows)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, stage, fail)
    with pytest.raises(LearnerError, match="No space left on device"):
        learner.save(tmp_path / "checkpoint")
    monkeypatch.undo()
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]
    other = opened(model)
    other.restore(tmp_path / "checkpoint")
    assert other.version == old


def damaged_weights(folder):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def cut_state(folder):
    data = (folder / "learner.state").read_bytes()
    (folder / "learner.state").write_bytes(data[: len(data) // 2])


def future_format(folder):
    manifest = json.loads((folder / "learner.json").read_text())
    (folder / "learner.json").write_text(json.dumps(manifest | {"format": 99}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damaged_weights, r"model\.safetensors is not as it was saved .* restore an earlier checkpoint"),
        (cut_state, r"learner\.state is not as it was saved"),
        (lambda folder: (folder / "config.json").unlink(), r"lacks config\.json; .* copy it whole"),
        (lambda folder: (folder / "learner.json").unlink(), r"has no learner\.json, so it is no learner's checkpoint"),
        (lambda folder: (folder / "learner.json").write_text("{"), r"learner\.json cannot be read"),
        (lambda folder: (folder / "learner.json").write_text("[]"), r"learner\.json cannot be read"),
        (future_format, r"format 99, this agentrl reads 1"),
    ],
)
def test_a_broken_checkpoint_is_refused_by_file_and_changes_nothing(model, batch_rows, tmp_path, damage, message):
    learner = opened(model)
    learner.step(batch_rows)
    learner.save(tmp_path / "checkpoint")
    damage(tmp_path / "checkpoint")
    other = opened(model)
    before = other.version
    with pytest.raises(LearnerError, match=message):
        other.restore(tmp_path / "checkpoint")
    assert other.version == before == opened(model).version


def test_a_checkpoint_of_something_else_is_refused(model, batch_rows, tmp_path, config):
    from agentrl.transformer.weights import init_weights, save_weights

    learner = opened(model)
    learner.step(batch_rows)
    learner.save(tmp_path / "checkpoint")
    with pytest.raises(LearnerError, match="of policy 'p', this learner's is 'q'"):
        LocalLearner("q", model, Clipped()).restore(tmp_path / "checkpoint")
    with pytest.raises(LearnerError, match="use the same kind of optimiser"):
        opened(model, AdamW()).restore(tmp_path / "checkpoint")
    save_weights(tmp_path / "larger", config(layers=3), init_weights(config(layers=3), 0))
    with pytest.raises(LearnerError, match="of another model"):
        opened(tmp_path / "larger").restore(tmp_path / "checkpoint")


def test_a_longer_schedule_is_taken_with_a_warning(model, batch_rows, tmp_path, caplog):
    learner = opened(model)
    learner.step(batch_rows)
    learner.save(tmp_path / "checkpoint")
    longer = opened(model, Muon(schedule=Linear(20)))
    with caplog.at_level(logging.WARNING):
        longer.restore(tmp_path / "checkpoint")
    assert "Linear(steps=20" in caplog.text
    assert longer.step(batch_rows).metrics["lr"] == pytest.approx(0.02 * 19 / 20)
