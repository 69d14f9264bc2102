"""Whether two models mean the same by a token id."""

from __future__ import annotations

from pathlib import Path

from agentrl.errors import UserError

TOKENIZER = "tokenizer.json"


def check_same_vocabulary(model: Path, reference: Path) -> None:
    """`UserError` unless both folders' tokenizers give each token the same id; padding of the matrices may differ."""
    one, other = model / TOKENIZER, reference / TOKENIZER
    if model.resolve() == reference.resolve():
        return
    for file in (one, other):
        if not file.is_file():
            raise UserError(f"{file.parent} has no {TOKENIZER}, so its tokens cannot be compared with those of a reference")
    if one.read_bytes() == other.read_bytes():
        return
    from tokenizers import Tokenizer

    ours, theirs = (Tokenizer.from_file(str(file)).get_vocab() for file in (one, other))
    differ = sum(theirs.get(token) != number for token, number in ours.items()) + len(theirs.keys() - ours.keys())
    if differ:
        raise UserError(
            f"the reference {reference} has another vocabulary than {model} ({differ} tokens differ), so a KL term between "
            "them means nothing; take a reference of the same family, or no KL"
        )
