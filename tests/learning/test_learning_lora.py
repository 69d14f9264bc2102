"""LoRA: what learns, what is served, what is kept, and that peft agrees."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from agentrl import Policy
from agentrl.config import apply_settings
from agentrl.engines.local import LocalEngine
from agentrl.errors import LearnerError, UserError
from agentrl.learning.local import LocalLearner
from agentrl.learning.lora import LoRA
from agentrl.learning.optimisers import AdamW
from agentrl.objectives import NLL
from agentrl.transformer.adapter import DOWN, UP, read_adapter
from agentrl.transformer.weights import digest_weights, init_weights, load_weights, save_weights
from agentrl_workflows.search_qa.experiment import search_qa

FOUR = LoRA(4)


def open_learner(model: Path, lora: LoRA | None = FOUR, **more: Any) -> LocalLearner:
    return LocalLearner("p", model, NLL(), **({"optimiser": AdamW(lr=3e-2), "lora": lora} | more))


def bytes_of(tensors: Any) -> dict[str, bytes]:
    return {name: tensor.detach().numpy().tobytes() for name, tensor in tensors.items()}


def adapter_of(learner: LocalLearner, folder: Path) -> dict[str, bytes]:
    learner.save(folder)
    adapter = read_adapter(folder)
    assert adapter is not None
    return bytes_of(adapter.tensors)


@pytest.fixture(scope="module")
def trained(model: Path, batch_rows: Any) -> LocalLearner:
    learner = open_learner(model)
    for _ in range(3):
        learner.step(batch_rows)
    return learner


def test_an_adapter_changes_nothing_before_the_first_step(model: Path, batch_rows: Any) -> None:
    plain, lora = open_learner(model, None), open_learner(model)
    assert bytes_of(lora.weights()) == bytes_of(plain.weights())
    assert lora.version == plain.version
    for one, other in zip(plain.logprobs(batch_rows), lora.logprobs(batch_rows), strict=True):
        assert [part.tobytes() for part in one] == [part.tobytes() for part in other]


def test_only_adapted_matrices_change_and_only_adapters_have_optimiser_state(
    model: Path, trained: LocalLearner, tmp_path: Path
) -> None:
    before, after = bytes_of(load_weights(model)), bytes_of(trained.weights())
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {name for name in before if "_proj" in name}
    trained.save(tmp_path / "saved")
    names = {name for kind in ("mean", "square") for name in (f"{kind}/{part}" for part in adapter_of(trained, tmp_path / "a"))}
    from safetensors.torch import load_file

    assert set(load_file(tmp_path / "saved" / "learner.state")) == names


def test_targets_choose_the_matrices(model: Path, batch_rows: Any) -> None:
    learner = open_learner(model, LoRA(2, targets=("q_proj", "v_proj")))
    learner.step(batch_rows)
    before, after = bytes_of(load_weights(model)), bytes_of(learner.weights())
    assert {name.split(".")[-2] for name in before if before[name] != after[name]} == {"q_proj", "v_proj"}


def test_the_loss_falls(model: Path, batch_rows: Any) -> None:
    learner = open_learner(model)
    losses = [learner.step(batch_rows).loss for _ in range(6)]
    assert losses[-1] < losses[0] - 0.3


def test_what_is_served_is_what_learns(trained: LocalLearner, batch_rows: Any, tmp_path: Path) -> None:
    save_weights(tmp_path / "merged", trained.config, trained.weights())
    merged = open_learner(tmp_path / "merged", None)
    for one, other in zip(trained.logprobs(batch_rows), merged.logprobs(batch_rows), strict=True):
        for mine, served in zip(one, other, strict=True):
            assert abs(mine - served).max() < 2e-5


def test_the_same_rows_give_the_same_bits(model: Path, trained: LocalLearner, batch_rows: Any) -> None:
    again = open_learner(model)
    for _ in range(3):
        again.step(batch_rows)
    assert again.version == trained.version
    assert bytes_of(again.weights()) == bytes_of(trained.weights())


def test_a_restored_learner_goes_on_as_if_never_stopped(model: Path, batch_rows: Any, tmp_path: Path) -> None:
    kept, stopped = open_learner(model), open_learner(model)
    stopped.step(batch_rows)
    stopped.save(tmp_path / "saved")
    other = open_learner(model)
    other.restore(tmp_path / "saved")
    assert other.version == stopped.version
    losses = [kept.step(batch_rows).loss for _ in range(3)]
    assert [other.step(batch_rows).loss for _ in range(2)] == losses[1:]
    assert bytes_of(other.weights()) == bytes_of(kept.weights())


def test_a_checkpoint_is_a_model_folder_of_the_merged_weights(trained: LocalLearner, tmp_path: Path) -> None:
    trained.save(tmp_path / "saved")
    assert not (tmp_path / "saved" / "model.safetensors").exists()
    assert bytes_of(load_weights(tmp_path / "saved")) == bytes_of(trained.weights())
    assert digest_weights(load_weights(tmp_path / "saved")) == trained.version.digest


async def test_the_engine_serves_a_checkpoint_as_the_version_that_it_holds(trained: LocalLearner, tmp_path: Path) -> None:
    trained.save(tmp_path / "saved")
    (tmp_path / "saved" / "tokenizer.json").unlink()  # this model's is a stand-in
    async with LocalEngine({"p": tmp_path / "saved"}) as engine:
        assert engine.version("p") == trained.version


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers for it
def test_peft_reads_a_checkpoint_and_gives_the_same_logits(trained: LocalLearner, model: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    trained.save(tmp_path / "saved")
    save_weights(tmp_path / "merged", trained.config, trained.weights())
    ids = torch.arange(2, 40)[None]
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(model)
        before = plain(ids).logits
        adapted = PeftModel.from_pretrained(plain, tmp_path / "saved")
        ours = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits
        theirs = adapted(ids).logits
    assert (theirs - ours).abs().max() < 2e-4
    assert (theirs - before).abs().max() > 0.1


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_that_peft_wrote_is_read(model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    settings = LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(model), settings)
    shutil.copytree(model, tmp_path / "adapter")
    (tmp_path / "adapter" / "model.safetensors").unlink()
    theirs.save_pretrained(tmp_path / "adapter")
    merged = theirs.merge_and_unload().state_dict()
    for name, tensor in load_weights(tmp_path / "adapter").items():
        assert torch.allclose(tensor, merged[name], atol=1e-6), name


def test_checkpoints_of_another_kind_are_refused(model: Path, trained: LocalLearner, tmp_path: Path) -> None:
    open_learner(model, None).save(tmp_path / "full")
    trained.save(tmp_path / "lora")
    with pytest.raises(LearnerError, match="saved by a learner of all weights"):
        open_learner(model).restore(tmp_path / "full")
    with pytest.raises(LearnerError, match=r"saved by a learner of LoRA adapters of rank 4.*the same lora"):
        open_learner(model, None).restore(tmp_path / "lora")
    with pytest.raises(LearnerError, match="another adapter"):
        open_learner(model, LoRA(2)).restore(tmp_path / "lora")
    other = tmp_path / "other"
    save_weights(other, trained.config, init_weights(trained.config, 9))
    with pytest.raises(LearnerError, match=r"holds an adapter to .*, this learner's base is"):
        open_learner(other).restore(tmp_path / "lora")


def test_a_checkpoint_whose_base_is_gone_says_so(trained: LocalLearner, tmp_path: Path) -> None:
    trained.save(tmp_path / "saved")
    file = tmp_path / "saved" / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(UserError, match=r"needs its base model .*gone.*base_model_name_or_path"):
        load_weights(tmp_path / "saved")


def test_adapters_that_are_no_plain_lora_are_refused(trained: LocalLearner, tmp_path: Path) -> None:
    trained.save(tmp_path / "saved")
    file = tmp_path / "saved" / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(UserError, match=r"LORA, use_dora; only plain LoRA is read.*merge_and_unload"):
        load_weights(tmp_path / "saved")
    file.write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        load_weights(tmp_path / "saved")


def test_an_adapter_of_another_model_is_refused(trained: LocalLearner, tmp_path: Path, config: Any) -> None:
    trained.save(tmp_path / "saved")
    other = config(hidden_size=16)
    save_weights(tmp_path / "other", other, init_weights(other, 0))
    file = tmp_path / "saved" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(tmp_path / "other")}))
    with pytest.raises(UserError, match=r"does not fit its base .*lora_"):
        load_weights(tmp_path / "saved")


def test_adapter_tensors_come_in_pairs(model: Path, tmp_path: Path) -> None:
    names = adapter_of(open_learner(model), tmp_path / "saved")
    assert {name.removesuffix(DOWN) for name in names if name.endswith(DOWN)} == {
        name.removesuffix(UP) for name in names if name.endswith(UP)
    }
    assert len(names) == 2 * 2 * 7


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoRA(0), r"LoRA\(rank=...\) must be at least 1, got 0"),
        (lambda: LoRA(4, alpha=0), r"LoRA\(alpha=...\) must be above 0, got 0"),
        (lambda: Policy("p", lora=-1), r"LoRA\(rank=...\) must be at least 1, got -1"),
    ],
)
def test_bad_settings_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_a_target_that_the_model_lacks_is_refused(model: Path) -> None:
    with pytest.raises(UserError, match=r"no matrix c_attn; it has down_proj, gate_proj, k_proj"):
        open_learner(model, LoRA(4, targets=("q_proj", "c_attn")))


def test_a_policy_takes_a_rank_or_a_value() -> None:
    assert Policy("p", lora=8).lora == LoRA(8)
    changed = apply_settings(search_qa("x"), ["policies.lora=16", "policies.lora.alpha=8"])
    assert changed.by_name["searcher"].lora == LoRA(16, alpha=8.0)
    assert apply_settings(changed, ["policies.lora=none"]).by_name["searcher"].lora is None
