"""Token ids as text, piece by piece: nothing lost, no character torn."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from agentrl.view.tokens import Vocabularies, pieces
from agentrl_workflows.search_qa.model import make_model
from tests.view.episodes import turn

TEXT = "Lima, São Paulo, 東京, 👩‍🚀 and naïve café. " * 3


@cache
def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3 and Qwen write text: every byte is a letter."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False))
    return tokenizer


@cache
def byte_fallback() -> Tokenizer:
    """As Llama 2 and Mistral write text: words behind a sign for the blank, bytes for what is no word."""
    words = {"▁": 0, "a": 1, "b": 2, "▁a": 3, "<unk>": 4, **{f"<0x{byte:02X}>": 5 + byte for byte in range(256)}}
    tokenizer = Tokenizer(models.BPE(words, [], unk_token="<unk>", byte_fallback=True))
    strip = decoders.Strip(content=" ", left=1, right=0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    return tokenizer


def check(tokenizer: Tokenizer, ids: Sequence[int]) -> None:
    whole = tokenizer.decode(ids, skip_special_tokens=False)
    found = pieces(ids, lambda some: tokenizer.decode(some, skip_special_tokens=False))
    assert "".join(piece.text for piece in found) == whole
    assert [at for piece in found for at in range(piece.start, piece.end)] == list(range(len(ids)))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 299), max_size=30))
def test_byte_level_pieces_make_up_the_text_whatever_was_sampled(ids: list[int]) -> None:
    check(byte_level(), ids)


@settings(max_examples=300, deadline=None)
@example([5 + 0xC3, 5 + 0xA9, 5 + 0xFF])  # a character, and behind it a byte that makes the decoder replace both
@given(st.lists(st.one_of(st.integers(0, 4), st.sampled_from([5 + byte for byte in (0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xFF, 65)]))))
def test_byte_fallback_pieces_make_up_the_text_whatever_was_sampled(ids: list[int]) -> None:
    check(byte_fallback(), ids)


def test_tokens_that_are_half_a_character_stand_together() -> None:
    tokenizer = byte_level()
    ids = [tokenizer.token_to_id(sign) for sign in ("a", "Ã", "©", "b")]
    found = pieces(ids, lambda some: tokenizer.decode(some, skip_special_tokens=False))
    assert [(piece.start, piece.end, piece.text) for piece in found] == [(0, 1, "a"), (1, 3, "é"), (3, 4, "b")]


def test_a_text_is_one_piece_a_token_where_tokens_are_whole() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("Lima, and Lima").ids
    assert len(pieces(ids, lambda some: tokenizer.decode(some, skip_special_tokens=False))) == len(ids)


def test_without_the_run_s_tokenizer_tokens_are_ids_and_it_is_said_why(tmp_path: Path) -> None:
    one = turn("x", "a", 0, "t", tokenizer="another")
    found = Vocabularies.read(tmp_path, [one])
    assert [piece.text for piece in found.pieces(one, one.sampled_ids)] == ["7 ", "8 ", "9"]
    assert found.decode(one, one.sampled_ids) == "7 8 9"
    assert found.problems == (f"some tokens are shown by id: {tmp_path} has no model folder with this tokenizer",)


def test_turns_without_tokens_need_no_tokenizer(tmp_path: Path) -> None:
    assert Vocabularies.read(tmp_path, [turn("x", "a", 0, "t", ids=[])]).problems == ()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), hidden=32, layers=1, heads=2, head_dim=16, ff=32)


def test_a_long_turn_is_cut_in_linear_time(model: Path) -> None:
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    counted = 0

    def decode(some: Sequence[int]) -> str:
        nonlocal counted
        counted += len(some)
        return tokenizer.decode(some, skip_special_tokens=False)

    ids = tokenizer.encode("nearest city of the capital of Norway? " * 300).ids
    assert "".join(piece.text for piece in pieces(ids, decode)) == decode(ids)
    assert counted < 10 * len(ids)
