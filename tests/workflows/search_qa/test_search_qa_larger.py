"""search_qa behind a few examples: what the model is shown, and that a run of it trains and reports."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from agentrl import train
from agentrl.run import Run
from agentrl.store.contract import EpisodeFilter
from agentrl_workflows.search_qa.larger import EXAMPLES, main, report, search_qa_larger
from agentrl_workflows.search_qa.model import make_model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("larger")
    model = make_model(place / "model", hidden=32, layers=1, heads=1, ff=32)
    experiment = search_qa_larger(model, steps=1)
    policy = replace(experiment.by_name["searcher"], lora=2)
    experiment = replace(experiment, policies=policy, tasks_per_step=1, held_out=experiment.held_out[:2])
    return asyncio.run(train(experiment, out=place / "run")).run


def test_examples_come_before_the_question_and_are_not_trained(run: Path) -> None:
    with Run.find(run).store(read_only=True) as store:
        episode = next(iter(store.episodes(EpisodeFilter(split="train"))))
    first = episode.turns[0]
    assert first.parent is None
    assert len(first.context_ids) > 100
    assert 0 < len(first.sampled_ids) <= 24


def test_every_answer_of_the_examples_stands_in_its_document() -> None:
    for question, call, document, answer in EXAMPLES:
        field, _, name = question.removesuffix("?").partition(" of ")
        assert call == f"<search>{name}</search>"
        assert document.splitlines()[0] == name
        assert f"{field}: {answer}" in document.splitlines()


def test_a_run_is_drawn_and_compared_with_where_it_began(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(run, questions=4)
    assert (run / "curve.png").stat().st_size > 1000
    assert "success" in capsys.readouterr().out


def test_a_folder_without_a_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert "there are no metrics at" in capsys.readouterr().err
    assert main([]) == 2
