"""A tiny chat model made on the spot: tokenizer, chat template and random weights in a Hugging Face folder.

For a task whose words are known it learns on a CPU in minutes, from nothing. Names that fall into rare pieces are copied badly
by a model of this size, so every given word is one token; all other text is bytes. The tokenizer is a Unigram model whose
pieces weigh alike, that is: the fewest pieces win. Nothing is trained, and equal arguments give equal files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from agentrl.errors import UserError

PAD, UNKNOWN, END = "<|pad|>", "<|unknown|>", "<|end|>"
SYSTEM, USER, ASSISTANT, TOOL = "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"
SPECIAL = (PAD, UNKNOWN, END, SYSTEM, USER, ASSISTANT, TOOL)
MULTIPLE = 64
"""The vocabulary is filled up to a multiple of this."""

# Only a model's turn has an end: the next message's role ends the others. A call that comes as data is written as tags.
# System messages are for models that can read: this one was never taught to, and would spend a token on every byte of them.
TEMPLATE = (
    "{%- for message in messages if message['role'] != 'system' -%}"
    "<|{{ message['role'] }}|>{{ message['content'] if message['content'] else '' }}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- for call in message['tool_calls'] or [] -%}"
    "{%- set function = call['function'] if call['function'] is defined else call -%}"
    "<{{ function['name'] }}>{{ function['arguments'].values() | join(' ') }}</{{ function['name'] }}>"
    "{%- endfor -%}<|end|>"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)


def vocabulary(words: Iterable[str], tools: Sequence[str]) -> tuple[str, ...]:
    """The pieces in order of ids: special tokens, a tool's tags, bytes, then the words."""
    found = dict.fromkeys([*SPECIAL, *_tags(tools), *(f"<0x{byte:02X}>" for byte in range(256)), *words])
    found |= dict.fromkeys(f"<|spare {at}|>" for at in range(-len(found) % MULTIPLE))
    return tuple(found)


def make_tiny_model(
    folder: str | Path,
    words: Iterable[str],
    tools: Sequence[str],
    *,
    seed: int = 0,
    hidden: int = 128,
    layers: int = 3,
    heads: int = 4,
    head_dim: int = 32,
    ff: int = 384,
    max_positions: int = 512,
    embedding_std: float = 0.1,
    std: float = 0.02,
) -> Path:
    """Writes a Qwen3 decoder with tied embeddings and random weights, and its tokenizer, to `folder`.

    `tools` are the names of the tools it will call as tags (`Policy(parser="tags")`); the tags are tokens, but part of the
    text. Embeddings are drawn wider (`embedding_std`) than matrices (`std`): a token that attention copies must stand out
    among all others from the start. Raises `UserError` when the folder already holds a model.
    """
    from agentrl.transformer.config import ModelConfig
    from agentrl.transformer.weights import EMBEDDING, init_weights, save_weights

    path = Path(folder)
    if (path / "config.json").exists():
        raise UserError(f"{str(path)!r} already holds a model; give another folder or delete it")
    pieces = vocabulary(words, tools)
    config = ModelConfig(
        architecture="Qwen3ForCausalLM",
        vocab_size=len(pieces),
        hidden_size=hidden,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        intermediate_size=ff,
        max_positions=max_positions,
        tied=True,
        eos_ids=(pieces.index(END),),
    )
    weights = init_weights(config, seed, std=std)
    weights[EMBEDDING] *= embedding_std / std
    save_weights(path, config.to_json(), weights)
    files = {"tokenizer.json": tokenizer_json(pieces, tools), "tokenizer_config.json": _tokenizer_config(max_positions)}
    for name, content in files.items():
        (path / name).write_text(json.dumps(content, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    return path


def tokenizer_json(pieces: Sequence[str], tools: Sequence[str]) -> dict[str, Any]:
    """The content of `tokenizer.json`."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": pieces.index(text), "content": text, **flags, "special": special}
        for special, texts in ((True, SPECIAL), (False, _tags(tools)))
        for text in texts
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "Unigram",
            "unk_id": pieces.index(UNKNOWN),
            "vocab": [[piece, -1.0] for piece in pieces],
            "byte_fallback": True,
        },
    }


def _tokenizer_config(max_positions: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_positions,
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "eos_token": END,
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    }


def _tags(tools: Sequence[str]) -> list[str]:
    return [tag for name in tools for tag in (f"<{name}>", f"</{name}>")]
