"""A tiny model for the atlas, made on the spot: tokenizer, chat template and random weights in a Hugging Face folder.

Names that fall into rare pieces are copied badly by a model of this size (of unseen cities above all), so every title,
value and field of the atlas is one token; all other text is bytes. The tokenizer is a Unigram model whose pieces weigh
alike, that is: the fewest pieces win. Nothing is trained, and equal arguments give equal files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from agentrl.errors import UserError
from agentrl_workflows.search_qa.atlas import CITY_FIELDS, COUNTRY_FIELDS, real_facts

PAD, UNKNOWN, END = "<|pad|>", "<|unknown|>", "<|end|>"
SYSTEM, USER, ASSISTANT, TOOL = "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"
SPECIAL = (PAD, UNKNOWN, END, SYSTEM, USER, ASSISTANT, TOOL)
OPEN, CLOSE = "<search>", "</search>"
"""A call of the tool `search`; one token each, but part of the text."""
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


@lru_cache(maxsize=1)
def pieces() -> tuple[str, ...]:
    """The vocabulary in order of ids: special tokens, tags, bytes, then the words of the atlas."""
    fixed = [*SPECIAL, OPEN, CLOSE, *(f"<0x{byte:02X}>" for byte in range(256))]
    found = dict.fromkeys([*fixed, *_words()])
    found |= dict.fromkeys(f"<|spare {at}|>" for at in range(-len(found) % MULTIPLE))
    return tuple(found)


def _words() -> Iterator[str]:
    yield from (" of the ", " of ", "?", "\n", " ", ": ", ", ", "no document")
    for field in (*COUNTRY_FIELDS, *CITY_FIELDS):
        yield field
        yield f"\n{field}: "
    for title, fields in real_facts().items():
        yield title
        yield from fields.values()


def tokenizer_json() -> dict[str, Any]:
    """The content of `tokenizer.json`."""
    vocabulary = pieces()
    added = [
        {
            "id": at,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": special,
        }
        for special, texts in ((True, SPECIAL), (False, (OPEN, CLOSE)))
        for at, text in ((vocabulary.index(text), text) for text in texts)
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
            "unk_id": vocabulary.index(UNKNOWN),
            "vocab": [[piece, -1.0] for piece in vocabulary],
            "byte_fallback": True,
        },
    }


def make_model(
    folder: str | Path,
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

    Embeddings are drawn wider (`embedding_std`) than matrices (`std`): a token that attention copies must stand out among
    all others from the start. Needs torch. Raises `UserError` when the folder already holds a model.
    """
    from agentrl.transformer.config import ModelConfig
    from agentrl.transformer.weights import EMBEDDING, init_weights, save_weights

    path = Path(folder)
    if (path / "config.json").exists():
        raise UserError(f"{str(path)!r} already holds a model; give another folder or delete it")
    config = ModelConfig(
        architecture="Qwen3ForCausalLM",
        vocab_size=len(pieces()),
        hidden_size=hidden,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        intermediate_size=ff,
        max_positions=max_positions,
        tied=True,
        eos_ids=(pieces().index(END),),
    )
    weights = init_weights(config, seed, std=std)
    weights[EMBEDDING] *= embedding_std / std
    save_weights(path, config.to_json(), weights)
    files = {
        "tokenizer.json": tokenizer_json(),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": max_positions,
            "pad_token": PAD,
            "unk_token": UNKNOWN,
            "eos_token": END,
            "clean_up_tokenization_spaces": False,
            "chat_template": TEMPLATE,
        },
    }
    for name, content in files.items():
        (path / name).write_text(json.dumps(content, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    return path
