"""The search tool: what it finds, in which order, and what it refuses."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.errors import UserError
from agentrl.tool import as_tool
from agentrl_tools.search import LOOP_LIMIT, NOTHING, Document, Search

CORPUS = [
    {"id": "pe", "title": "Peru", "text": "capital: Lima\ncurrency: Sol"},
    {"id": "li", "title": "Lima", "text": "country: Peru\nnearest city: Callao"},
    {"id": "ca", "title": "Callao", "text": "country: Peru\nnearest city: Lima"},
    {"id": "sp", "title": "São Paulo", "text": "country: Brazil"},
]


def ids(found: list[Document]) -> list[str]:
    return [document.id for document in found]


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_document_whose_title_is_the_query_comes_first_whatever_its_case_accents_and_blanks():
    search = Search(CORPUS)
    assert ids(search.find("Lima")) == ["li"]
    assert ids(search.find("  sao   PAULO ")) == ["sp"]
    assert ids(search.find("Sa\u0303o Paulo")) == ["sp"]


def test_of_titles_that_fold_alike_the_very_same_one_comes_first():
    search = Search([{"title": "San Jose", "text": "a"}, {"title": "San José", "text": "b"}])
    assert ids(search.find("San José")) == ["San José"]
    assert ids(search.find("san josé")) == ["San Jose"]


def test_a_word_in_the_title_counts_more_than_in_the_text():
    others = [{"id": f"z{at}", "title": "pear", "text": "x"} for at in range(8)]
    corpus = [{"id": "a", "title": "x", "text": "apple apple apple"}, {"id": "b", "title": "apple", "text": "x x x"}, *others]
    assert ids(Search(corpus, top_k=2).find("an apple dish")) == ["b", "a"]
    assert ids(Search(CORPUS).find("the currency of Peru")) == ["pe"]


def test_a_word_of_every_document_still_finds_them_where_the_other_words_find_nothing():
    assert ids(Search(CORPUS[:1]).find("where is the capital quark")) == ["pe"]
    assert ids(Search(CORPUS, top_k=4).find("country quark")) == ["sp", "ca", "li"]  # the shortest first, then by id


def test_equal_documents_are_ordered_by_id_whatever_their_order_in_the_corpus():
    corpus = [{"id": name, "title": f"t {name}", "text": "one word"} for name in ("c", "a", "d", "b")]
    assert ids(Search(corpus, top_k=3).find("word")) == ["a", "b", "c"]
    assert ids(Search(corpus[::-1], top_k=3).find("word")) == ["a", "b", "c"]


def test_top_k_gives_the_title_first_and_then_the_best_others_without_repeating_it():
    found = ids(Search(CORPUS, top_k=4).find("lima"))
    assert found[0] == "li"
    assert sorted(found) == ["ca", "li", "pe"]


@pytest.mark.parametrize(
    "query", ["", "   ", "?!.,;", '"', "''", "*", "(", "NEAR(", "AND OR NOT", "title:", "a^b", "-", "\0", "Lima*", '"Lima']
)
def test_syntax_of_the_index_is_only_text_in_a_query(query: str):
    # "title" and "text" are columns, NEAR, AND, OR and NOT operators: none of them is a word of this corpus.
    assert ids(Search(CORPUS).find(query)) == (["li"] if "Lima" in query else [])


@given(st.text(max_size=60))
def test_no_query_raises_and_every_answer_is_a_document_of_the_corpus(query: str):
    found = SHARED.find(query)
    assert len(found) <= 2
    assert set(ids(found)) <= {"pe", "li", "ca", "sp"}


SHARED = Search(CORPUS, top_k=2)


async def test_the_model_reads_title_and_text_and_the_record_keeps_the_ids():
    output = await Search(CORPUS)("Lima")
    assert output.text == "Lima\ncountry: Peru\nnearest city: Callao"
    assert output.data == {"documents": ["li"]}


async def test_several_documents_stand_apart_and_each_is_cut_at_max_chars():
    corpus = [{"title": "one", "text": "same " * 50}, {"title": "two", "text": "same"}]
    output = await Search(corpus, top_k=2, max_chars=20)("same")
    assert sorted(output.text.split("\n\n")) == ["one\n" + ("same " * 50)[:16] + "…", "two\nsame"]


async def test_the_model_is_told_when_nothing_fits():
    output = await Search(CORPUS)("quark")
    assert output.text == NOTHING
    assert output.data == {"documents": []}


def test_the_docstring_is_the_schema_and_the_tool_may_be_called_again():
    tool = as_tool(Search(CORPUS))
    assert tool.name == "search"
    assert tool.idempotent
    assert tool.is_async
    assert tool.parameters["required"] == ["query"]
    assert "query" in tool.description


def test_a_file_gives_the_same_answers_as_its_documents(tmp_path: Path):
    path = write(tmp_path / "docs.jsonl", [json.dumps(entry) for entry in CORPUS] + ["", "  "])
    for query in ("Lima", "nearest city", "Brazil", "x"):
        assert ids(Search(path, top_k=3).find(query)) == ids(Search(CORPUS, top_k=3).find(query))


def test_a_file_that_changed_is_read_again(tmp_path: Path):
    path = write(tmp_path / "docs.jsonl", [json.dumps(CORPUS[0])])
    before = Search(str(path))
    write(path, [json.dumps(entry) for entry in CORPUS])
    after = Search(str(path))
    assert (len(before), len(after)) == (1, 4)
    assert ids(before.find("Lima")) == ["pe"]


def test_without_an_id_the_title_is_the_id_and_repeats_are_numbered():
    search = Search([{"title": "a", "text": "x"}, {"title": "a", "text": "y"}, {"title": "a", "text": "z"}], top_k=3)
    assert ids(search.find("a")) == ["a", "a#2", "a#3"]


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        (['{"title": "a", "text": "b"}', "{"], "docs.jsonl:2 is no JSON"),
        (['{"title": "a"}'], "docs.jsonl:1 must be"),
        (['{"title": "a", "text": 3}'], "docs.jsonl:1 must be"),
        (["[1]"], "docs.jsonl:1 must be"),
        (['{"id": 1, "title": "a", "text": "b"}', '{"id": "1", "title": "c", "text": "d"}'], "docs.jsonl:2 has the id '1'"),
        ([""], "has no documents"),
    ],
)
def test_a_malformed_corpus_is_refused_with_its_line(tmp_path: Path, lines: list[str], wanted: str):
    with pytest.raises(UserError, match=wanted):
        Search(write(tmp_path / "docs.jsonl", lines))


def test_a_corpus_that_cannot_be_read_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be read"):
        Search(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        Search(tmp_path)
    (tmp_path / "latin.jsonl").write_bytes(b'{"title": "\xe9", "text": ""}')
    with pytest.raises(UserError, match="UTF-8"):
        Search(tmp_path / "latin.jsonl")


def test_an_empty_sequence_and_limits_below_one_are_refused():
    with pytest.raises(UserError, match="no documents"):
        Search([])
    with pytest.raises(UserError, match="top_k >= 1"):
        Search(CORPUS, top_k=0)
    with pytest.raises(UserError, match="max_chars >= 1"):
        Search(CORPUS, max_chars=0)


def test_threads_that_share_a_tool_get_the_answers_of_one_that_is_alone():
    queries = ["Lima", "country of Callao", "currency", "nearest city", "Peru Lima", "Brazil"] * 40
    alone = [ids(Search(CORPUS, top_k=3).find(query)) for query in queries]
    shared = Search(CORPUS, top_k=3)
    with ThreadPoolExecutor(8) as pool:
        assert [ids(found) for found in pool.map(shared.find, queries)] == alone


async def test_words_in_a_large_corpus_are_searched_off_the_event_loop_and_a_title_on_it():
    where: list[int] = []

    class Noting(Search):
        def find(self, query: str) -> list[Document]:
            where.append(threading.get_ident())
            return super().find(query)

    search = Noting([{"title": f"number {at}", "text": f"word{at % 7}"} for at in range(LOOP_LIMIT + 1)])
    assert (await search("word3")).data == {"documents": ["number 10"]}
    assert (await search("number 12")).data == {"documents": ["number 12"]}
    assert where[0] != threading.get_ident()
    assert where[1] == threading.get_ident()
