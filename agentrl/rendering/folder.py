"""What rendering needs of a Hugging Face model folder: tokenizer, chat template, special tokens, stop tokens.

Reads `tokenizer.json` and the small files beside it with the `tokenizers` library alone; transformers is never imported.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from tokenizers import AddedToken, Tokenizer

from agentrl.errors import UserError


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """The parts of a model folder that decide how messages become tokens."""

    tokenizer: Tokenizer
    tokenizer_id: str
    """Hex digest of tokenizer.json as it lies on the disk."""
    templates: Mapping[str, str]
    """Chat templates by name; the usual one is `default`."""
    special_tokens: Mapping[str, str] = field(default_factory=dict[str, str])
    """`bos_token`, `eos_token` and the like, as templates read them."""
    stop_ids: tuple[int, ...] = ()
    """What the folder itself names as ends of a turn; the template's own end of turn is found by rendering."""


def read_folder(path: str | Path) -> ModelFolder:
    """The folder's tokenizer and templates. `UserError` if there is no tokenizer.json or no chat template."""
    folder = Path(path)
    file = folder / "tokenizer.json"
    if not file.is_file():
        legacy = [name for name in ("tokenizer.model", "vocab.json", "spiece.model") if (folder / name).is_file()]
        found = f"only {', '.join(legacy)}" if legacy else "no tokenizer at all"
        raise UserError(
            f"{folder} has no tokenizer.json, {found}; write one with "
            "transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    raw = file.read_bytes()
    tokenizer: Tokenizer = Tokenizer.from_buffer(raw)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    config = _read_json(folder / "tokenizer_config.json")
    _add_missing_tokens(tokenizer, config)
    specials = {name: token for name, value in config.items() if name.endswith("_token") and (token := _content(value))}
    return ModelFolder(
        tokenizer,
        hashlib.blake2b(raw, digest_size=16).hexdigest(),
        _templates(folder, config),
        specials,
        _stop_ids(folder, tokenizer, specials),
    )


def _read_json(file: Path) -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads(file.read_text("utf-8"))) if file.is_file() else {}


def _content(value: Any) -> str:
    """A token as older and newer files write it: a string, or a mapping with `content`."""
    if isinstance(value, dict):
        value = cast("dict[str, Any]", value)["content"]
    return value if isinstance(value, str) else ""


def _add_missing_tokens(tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
    """Tokens that only tokenizer_config.json declares, under the ids it gives; older folders keep them there."""
    declared = cast("dict[str, dict[str, Any]]", config.get("added_tokens_decoder") or {})
    for number, entry in sorted(declared.items(), key=lambda item: int(item[0])):
        content = _content(entry)
        if tokenizer.token_to_id(content) is None:
            flags = {
                name: entry[name] for name in ("single_word", "lstrip", "rstrip", "normalized", "special") if name in entry
            }
            tokenizer.add_tokens([AddedToken(content, **flags)])
        if tokenizer.token_to_id(content) != int(number):
            raise UserError(
                f"tokenizer_config.json says {content!r} has id {number}, tokenizer.json gives "
                f"{tokenizer.token_to_id(content)}; save the tokenizer again so that the two agree"
            )


def _templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """All chat templates, the newest place winning: chat_template.jinja, then the two places of older folders."""
    found: dict[str, str] = {}
    inline: Any = config.get("chat_template") or _read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(inline, str):
        found["default"] = inline
    elif inline:
        found.update({entry["name"]: entry["template"] for entry in cast("list[dict[str, str]]", inline)})
    if (file := folder / "chat_template.jinja").is_file():
        found["default"] = file.read_text("utf-8")
    for file in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        found[file.stem] = file.read_text("utf-8")
    if "default" not in found:
        raise UserError(
            f"{folder} has no default chat template (names found: {sorted(found) or 'none'}); a base model has none: put the "
            "template of its instruct model, or your own, into chat_template.jinja"
        )
    return found


def _stop_ids(folder: Path, tokenizer: Tokenizer, specials: Mapping[str, str]) -> tuple[int, ...]:
    eos = _read_json(folder / "generation_config.json").get("eos_token_id")
    if eos is None:
        eos = _read_json(folder / "config.json").get("eos_token_id")
    ids = cast("list[int]", eos if isinstance(eos, list) else [] if eos is None else [eos])
    named = tokenizer.token_to_id(specials["eos_token"]) if "eos_token" in specials else None
    if named is not None and named not in ids:
        ids = [*ids, named]
    return tuple(ids)
