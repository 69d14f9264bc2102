"""Token ids as text: with the run's own tokenizers, token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.episode import IntArray, Turn
from agentrl.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens [start, end) and their text: one token, or the few that make up a character only together."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Vocabularies:
    """A run's tokenizers by digest, and why there is not one for every policy."""

    tokenizers: Mapping[str, Tokenizer]
    problems: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path, turns: Iterable[Turn]) -> Vocabularies:
        """The tokenizers that `turns` need, from the run's checkpoints and the models that it began with."""
        wanted = {turn.tokenizer for turn in turns if turn.tokenizer}
        found: dict[str, Tokenizer] = {}
        problems: list[str] = []
        for place in _places(folder) if wanted else ():
            if not wanted - found.keys():
                break
            try:
                from agentrl.rendering.folder import read_folder  # needs an extra

                model = read_folder(place)
            except (UserError, ImportError) as error:
                problems.append(str(error))
            else:
                found[model.tokenizer_id] = model.tokenizer
        if not wanted - found.keys():
            return cls(found)
        why = problems[0] if problems else f"{folder} has no model folder with this tokenizer"
        return cls(found, (f"some tokens are shown by id: {why}",))

    def of(self, turn: Turn) -> Tokenizer | None:
        """The tokenizer that the turn was made with, if it is here."""
        return self.tokenizers.get(turn.tokenizer)

    def decode(self, turn: Turn, ids: IntArray) -> str:
        """The text of some of a turn's ids; the ids themselves without a tokenizer."""
        tokenizer = self.of(turn)
        return " ".join(map(str, ids.tolist())) if tokenizer is None else _decoder(tokenizer)(ids.tolist())

    def pieces(self, turn: Turn, ids: IntArray) -> list[Piece]:
        """The ids piece by piece; the texts end to end are `decode`."""
        tokenizer = self.of(turn)
        if tokenizer is not None:
            return pieces(ids.tolist(), _decoder(tokenizer))
        last = len(ids) - 1
        return [Piece(at, at + 1, f"{number} " if at < last else str(number)) for at, number in enumerate(ids.tolist())]

    def name(self, turn: Turn, number: int) -> str:
        """How the vocabulary writes a token; empty without a tokenizer."""
        tokenizer = self.of(turn)
        return (tokenizer.id_to_token(number) or "") if tokenizer is not None else ""


def pieces(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[Piece]:
    """Cuts `ids` into pieces whose texts, end to end, are `decode(ids)`.

    A token is decoded behind the piece before it, for many tokenizers write a token otherwise at the beginning. Where that
    does not give the whole text (bytes that are no UTF-8, which some decoders replace run by run), every prefix is tried.
    """
    whole = decode(ids)
    found: list[Piece] = []
    before = start = 0
    for end in range(1, len(ids) + 1):
        known = decode(ids[before:start])
        text = decode(ids[before:end])
        if (len(text) > len(known) and not text.endswith("\ufffd")) or end == len(ids):
            found.append(Piece(start, end, text[len(known) :]))
            before, start = start, end
    return found if "".join(piece.text for piece in found) == whole else _by_prefixes(ids, decode, whole)


def _by_prefixes(ids: Sequence[int], decode: Callable[[Sequence[int]], str], whole: str) -> list[Piece]:
    """A cut wherever the tokens up to it decode to the beginning of the whole text."""
    found: list[Piece] = []
    start = written = 0
    for end in range(1, len(ids) + 1):
        text = decode(ids[:end]) if end < len(ids) else whole
        if (len(text) > written and whole.startswith(text)) or end == len(ids):
            found.append(Piece(start, end, text[written:]))
            start, written = end, len(text)
    return found


def _decoder(tokenizer: Tokenizer) -> Callable[[Sequence[int]], str]:
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=False)


def _places(folder: Path) -> list[Path]:
    """Where a run's tokenizers may lie; nothing for a store that stands alone."""
    from agentrl.run import Run

    if not (folder / "experiment.json").is_file():
        return []
    run = Run.find(folder)
    policies: dict[str, Any] = run.described["experiment"]["policies"]
    named = [policies] if "model" in policies else list(policies.values())
    saved = [path for policy in named for path in run.checkpoints(policy["name"])[-1:]]
    return [*saved, *dict.fromkeys(Path(policy["model"]) for policy in named if policy["model"])]
