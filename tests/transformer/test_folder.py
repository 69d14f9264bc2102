"""Reading and writing model folders, and what is said when one is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from agentrl.errors import UserError
from agentrl.transformer.config import ModelConfig, RopeScaling
from agentrl.transformer.weights import digest_weights, init_weights, load_weights, save_weights, weight_shapes

TINY = ModelConfig(
    architecture="Qwen3ForCausalLM",
    vocab_size=40,
    hidden_size=16,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=8,
    intermediate_size=24,
    max_positions=64,
    tied=True,
    eos_ids=(3, 5),
)


def edit(folder: Path, **fields: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_weights(tmp_path / "model", TINY, init_weights(TINY, seed=0))
    return tmp_path / "model"


def test_a_config_survives_its_json(folder: Path) -> None:
    assert ModelConfig.from_folder(folder) == TINY


def test_rope_is_read_in_the_layouts_of_transformers_4_and_5() -> None:
    new = TINY.to_json()
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    new["rope_parameters"] = {"rope_type": "llama3", "rope_theta": 5e5, **scaling}
    old = {key: value for key, value in new.items() if key != "rope_parameters"}
    old |= {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **scaling}, "torch_dtype": "bfloat16"}
    assert ModelConfig.from_json(old) == ModelConfig.from_json(new)
    assert ModelConfig.from_json(new).rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 32)


def test_end_ids_of_the_generation_config_are_added(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 9]}))
    assert ModelConfig.from_folder(folder).eos_ids == (3, 5, 9)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"architectures": []}, "(none)"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"use_sliding_window": True, "sliding_window": 32}, "sliding-window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding-window"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 4.0}}, "low_freq_factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"num_key_value_heads": 3}, "no multiple"),
    ],
)
def test_a_config_that_we_cannot_compute_is_refused(folder: Path, fields: dict[str, Any], said: str) -> None:
    edit(folder, **fields)
    with pytest.raises(UserError) as error:
        ModelConfig.from_folder(folder)
    assert said in str(error.value)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        ModelConfig.from_folder(tmp_path / "absent")


def test_a_folder_without_a_config_names_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"no config\.json \(it has: notes\.txt\)"):
        ModelConfig.from_folder(tmp_path)


def test_a_broken_config_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="no readable JSON"):
        ModelConfig.from_folder(folder)


def test_weights_survive_saving_to_the_bit(folder: Path) -> None:
    assert digest_weights(load_weights(folder)) == digest_weights(init_weights(TINY, seed=0))


def test_tied_weights_are_stored_once(folder: Path) -> None:
    assert set(load_file(folder / "model.safetensors")) == set(weight_shapes(TINY))
    assert "lm_head.weight" not in weight_shapes(TINY)


def test_shards_are_read_by_their_index(folder: Path) -> None:
    tensors = load_weights(folder)
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert digest_weights(load_weights(folder)) == digest_weights(tensors)


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-00001.safetensors"}}))
    with pytest.raises(UserError, match=r"lacks model-00001\.safetensors"):
        load_weights(folder)


def test_half_precision_files_become_float32(folder: Path) -> None:
    halves = {name: value.bfloat16() for name, value in load_weights(folder).items()}
    save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})
    loaded = load_weights(folder)
    assert all(
        torch.equal(loaded[name], value.float()) and loaded[name].dtype == torch.float32 for name, value in halves.items()
    )


def test_missing_and_unknown_tensors_are_named(folder: Path) -> None:
    tensors = load_weights(folder)
    tensors["model.extra"] = tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"missing model\.norm\.weight and unknown model\.extra"):
        load_weights(folder)


def test_a_wrong_shape_is_named(folder: Path) -> None:
    edit(folder, vocab_size=41)
    with pytest.raises(UserError, match=r"embed_tokens\.weight has shape \(40, 16\) but the config asks \(41, 16\)"):
        load_weights(folder)


def test_a_broken_file_is_said_to_be_broken(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="broken or half written"):
        load_weights(folder)


def test_a_digest_depends_on_values_and_names_and_not_on_order() -> None:
    tensors = init_weights(TINY, seed=0)
    assert digest_weights(dict(reversed(tensors.items()))) == digest_weights(tensors)
    assert len(digest_weights(tensors)) == 16
    changed = dict(tensors)
    changed["model.norm.weight"] = changed["model.norm.weight"] + 1e-7
    assert digest_weights(changed) != digest_weights(tensors)
    assert digest_weights(init_weights(TINY, seed=1)) != digest_weights(tensors)
