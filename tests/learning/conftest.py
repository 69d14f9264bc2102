from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agentrl.episode import Episode, Parent, Sampling, Turn, Version, VersionSpan, token_ids
from agentrl.learning import Row, TrainedTurn
from agentrl.transformer.config import ModelConfig
from agentrl.transformer.weights import init_weights, save_weights

VOCABULARY = 96


def make_turn(
    name: str, context: Sequence[int], sampled: Sequence[int], parent: Parent | None = None, index: int = 0, **fields: Any
) -> Turn:
    values: dict[str, Any] = {
        "id": name, "agent": "a", "index": index, "policy": "p",
        "versions": (VersionSpan(Version("run", "p", 0), 0, len(sampled)),), "parent": parent, "predecessor": None,
        "branch": "",
        "context_ids": token_ids(context), "sampled_ids": token_ids(sampled),
        "logprobs": np.full(len(sampled), -4.5, np.float32), "logprobs_at": "before_mask", "finish": "stop",
        "sampling": Sampling(), "seed": 0, "text": "",
    }  # fmt: skip
    return Turn(**(values | fields))


def make_episode(name: str, turns: Sequence[Turn], **fields: Any) -> Episode:
    values: dict[str, Any] = {
        "id": name, "group": "g", "task": None, "seed": 0, "workflow": "", "source": "policy", "status": "done",
        "turns": tuple(turns),
    }  # fmt: skip
    return Episode(**(values | fields))


def make_tree(name: str, seed: int, shape: Sequence[int | None], *, prompt: Sequence[int] = (), **fields: Any) -> Episode:
    """An episode with a turn for each entry of `shape`, which says which turn it goes on from (None = a fresh context)."""
    rng = np.random.default_rng(seed)
    turns: list[Turn] = []
    lengths: list[int] = []
    for number, before in enumerate(shape):
        context = [*prompt] if prompt and before is None else rng.integers(0, VOCABULARY, rng.integers(1, 7)).tolist()
        sampled = rng.integers(0, VOCABULARY, rng.integers(1, 7)).tolist()
        parent = None if before is None else Parent(str(before), lengths[before])
        temperature = (1.0, 0.7, 0.0)[number % 3]
        known = {
            "sampling": Sampling(temperature=temperature),
            "logprobs": rng.normal(-4.5, 0.3, len(sampled)).astype(np.float32),
        }
        turns.append(make_turn(str(number), context, sampled, parent, number, **(known | fields)))
        lengths.append((lengths[before] if before is not None else 0) + len(context) + len(sampled))
    return make_episode(name, turns)


def make_rows(episode: Episode, seed: int = 0) -> list[Row]:
    """A row for every leaf, with all turns of its path trained and advantages drawn from `seed`."""
    rng = np.random.default_rng(seed)
    advantages = {turn.id: rng.normal(size=len(turn.sampled_ids)).astype(np.float32) for turn in episode.turns}
    rows: list[Row] = []
    for leaf in episode.leaves():
        path: list[Turn] = [leaf]
        while (parent := path[0].parent) is not None:
            path.insert(0, episode.by_id[parent.turn])
        rows.append(Row(episode, leaf, tuple(TrainedTurn(turn, advantages[turn.id]) for turn in path)))
    return rows


def make_config(architecture: str = "Qwen3ForCausalLM", **fields: Any) -> ModelConfig:
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8,
        "intermediate_size": 48, "max_positions": 256, "tied": True, "qkv_bias": architecture == "Qwen2ForCausalLM",
    }  # fmt: skip
    return ModelConfig(architecture, **(sizes | fields))


@pytest.fixture(scope="session")
def turn() -> Callable[..., Turn]:
    return make_turn


@pytest.fixture(scope="session")
def episode() -> Callable[..., Episode]:
    return make_episode


@pytest.fixture(scope="session")
def tree() -> Callable[..., Episode]:
    return make_tree


@pytest.fixture(scope="session")
def rows_of() -> Callable[..., list[Row]]:
    return make_rows


@pytest.fixture(scope="session")
def config() -> Callable[..., ModelConfig]:
    return make_config


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small Qwen3 whose weights are large enough for its log-probs to differ from uniform."""
    folder = tmp_path_factory.mktemp("model")
    save_weights(folder, make_config(), init_weights(make_config(), 1, std=0.15))
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture(scope="session")
def batch_rows() -> list[Row]:
    """Rows of three chains with one prompt, two trees and an episode of two contexts."""
    prompt = (5, 6, 7, 8)
    episodes = [make_tree(f"chain{i}", i, (None, 0, 1), prompt=prompt) for i in range(3)]
    episodes += [make_tree("fork", 7, (None, 0, 0, 1, 1, 2)), make_tree("roots", 8, (None, None, 1, 1))]
    episodes.append(make_tree("fresh", 9, (None, 0, None, 2), prompt=prompt))
    return [row for seed, episode in enumerate(episodes) for row in make_rows(episode, seed)]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)
