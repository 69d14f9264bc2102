"""The report: what it says of a run is what the run's files hold, whole or not."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from agentrl.cli import main
from agentrl.episode import Failure, Ledger, ToolCall
from agentrl.errors import UserError
from agentrl.metrics import JSONL, StepMetrics
from agentrl.report import gather, say, summarise
from agentrl.report.page import page
from agentrl.report.svg import BARS, POINTS, Line, bar_chart, line_chart, ticks
from agentrl.store.contract import EpisodeTail
from agentrl.store.sqlite import SQLiteStore
from tests.store.store_values import make_effect, make_head, make_turn

pytestmark = pytest.mark.drifts  # turns that no engine sampled


def write_metrics(folder: Path, steps: range, **values: float) -> None:
    sink = JSONL(folder / "metrics.jsonl")
    for step in steps:
        sink.write(StepMetrics(step, {"reward/mean": step / 10, "time/rollout": 3.0, "time/learn": 1.0, "drift": 0.0} | values))
    sink.close()


def store_episode(store: SQLiteStore, name: str, seconds: float = 1.0, **changes: Any) -> None:
    """An episode of one turn that took 0.5 s and called a tool for 0.25 s."""
    options: dict[str, Any] = {
        "status": "done",
        "failure": None,
        "step": 0,
        "tool": "ok",
        "ends": True,
        "untrained": "",
    } | changes
    call = ToolCall("search", {}, options["tool"], "found", 0.5, 0.75)
    turn = make_turn(0, tool_calls=(call,), started=0.0, ended=0.5, cached_tokens=1, untrained=options["untrained"])
    store.begin(make_head(name, step=options["step"]))
    stop = make_effect(1, {"agent": "solver", "reason": "answered"}, kind="note", name="stop")
    store.append(name, [make_effect(0, kind="model", turn=turn), stop])
    if options["ends"]:
        paid = Ledger(sampled_tokens=3, prompt_tokens=2, cached_tokens=1, tool_calls=1, model_calls=1)
        store.finish(name, EpisodeTail(options["status"], failure=options["failure"], seconds=seconds, ledger=paid))


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """A run of ten batches that was resumed once, with a straggler, two failures and an episode under way."""
    write_metrics(tmp_path, range(1, 6), **{"loop_lag/mean": 0.001, "loop_lag/p99": 0.01, "loop_lag/max": 0.02})
    write_metrics(tmp_path, range(6, 11), **{"loop_lag/mean": 0.01, "loop_lag/p99": 0.25, "loop_lag/max": 0.5})
    with SQLiteStore(tmp_path / "store.db") as store:
        for number in range(8):
            store_episode(store, f"s{number:06d}.000.0", step=number)
        store_episode(store, "slow", 30.0, step=3)
        for name in ("bad", "worse"):
            store_episode(store, name, status="failed", tool="error", failure=Failure("tool", f"<b>{name}\x1b[31m & hung</b>"))
        store_episode(store, "now", ends=False)
        store.flush_sync()
    return tmp_path


def test_the_summary_says_what_the_files_hold(ran: Path) -> None:
    lines = dict(line.split(maxsplit=1) for line in summarise(gather(ran)).replace("loop lag", "loop_lag").splitlines())
    assert lines["run"].endswith("batch 10, resumed 1 time, 1 episodes running or suspended")
    assert lines["learning"] == "sampled reward 0.100 at batch 1, 1.000 at batch 10"
    assert lines["time"] == "most of the time went into rollout: 75% of 40 s, then learn 25%"
    assert lines["stragglers"].startswith(
        "the slowest episode is slow: 30 s, 30.0 times the median of 1 s; 0.5 s of it the model, "
    )
    assert (
        lines["loop_lag"]
        == "the event loop was at most 0.5 s late (batch 6); in 5 of 10 steps its 99th percentile is above 0.1 s"
    )
    assert lines["drift"] == "no drift: the engine saw the recorded tokens in every one of 12 turns"
    assert lines["tokens"] == "33 tokens sampled; 22 of prompts, 50% of them cached"
    assert lines["tools"] == "search: 12 calls, 0.25 s each, at most 0.25 s, 16.7% failed"
    assert lines["failures"] == "2 lost (tool): bad: <b>bad\\x1b[31m & hung</b>"
    assert lines["store"].endswith("12 episodes")


class Page(HTMLParser):
    """The page's tags in balance, its text by section, and whatever it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sections: dict[str, str] = {}
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.section = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attrs)
        if tag == "section":
            self.section = found["id"] or ""
        self.fetched += [f"{tag} {name}" for name in ("src", "xlink:href", "data") if name in found]
        if tag in ("link", "script", "img", "iframe") or (tag == "a" and not (found["href"] or "").startswith("#")):
            self.fetched.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.sections[self.section] = self.sections.get(self.section, "") + data + " "


def test_the_page_stands_alone_and_has_every_section(ran: Path) -> None:
    text = page(gather(ran))
    read = Page(text)
    assert read.fetched == []
    assert "url(" not in text and "@import" not in text and "http" not in text
    assert "prefers-color-scheme: dark" in text
    sections = read.sections
    assert "Most of the time went into rollout" in sections["where-the-time-went"]
    assert "agentrl view" in sections["stragglers"] and "slow" in sections["stragglers"]
    assert "in 5 of 10 steps" in sections["loop-lag"]
    assert "No drift" in sections["drift"]
    assert "bad\\x1b[31m & hung" in sections["failures-and-ends"] and "answered" in sections["failures-and-ends"]
    assert "search" in sections["tools"] and "16.7%" in sections["tools"]
    assert "session 2" in sections["the-run"] and "numpy" in sections["the-run"]
    assert "12: 12 train" in sections["what-is-kept"]
    assert read.tags.count("svg") == 4  # reward, time, stragglers, lag


def test_what_a_run_wrote_cannot_act_on_the_page(ran: Path) -> None:
    text = page(gather(ran))
    assert "<b>bad" not in text
    assert "\x1b" not in text


def test_drift_is_red(tmp_path: Path) -> None:
    write_metrics(tmp_path, range(1, 3), drift=2.0)
    with SQLiteStore(tmp_path / "store.db") as store:
        store_episode(store, "e1", untrained="the engine saw other token ids than the record holds")
        store.flush_sync()
    gathered = gather(tmp_path)
    assert say.of_drift(gathered) == (False, "drift: in 4 sampled turns the engine saw other tokens than the record holds")
    assert 'class="verdict bad"' in page(gathered)


def test_a_run_that_ended_at_once_says_what_is_missing(tmp_path: Path) -> None:
    described: dict[str, Any] = {name: {} for name in ("credit", "objective", "rollout")}
    described |= {"steps": 3, "tasks_per_step": 1, "max_staleness": 0, "workflow": {"name": "answer"}}
    described |= {"policies": {"name": "p", "model": "m"}}
    document = {"target": "", "settings": [], "lineage": "ab", "experiment": described}
    (tmp_path / "experiment.json").write_text(json.dumps(document))
    gathered = gather(tmp_path)
    told = summarise(gathered)
    for words in (
        "answer: no batch learned yet", "nothing was measured yet", "no step was timed yet", "no episode has ended yet",
        "lag was not measured", "no turn was sampled yet", "no tokens yet",
    ):  # fmt: skip
        assert words in told
    assert "there is no metrics.jsonl" in Page(page(gathered)).sections["the-run"]


def test_metrics_that_are_not_finite_leave_a_gap(tmp_path: Path) -> None:
    write_metrics(tmp_path, range(1, 4))
    write_metrics(tmp_path, range(4, 6), **{"grad_norm": float("nan"), "loss": float("inf"), "time/learn": float("nan")})
    write_metrics(tmp_path, range(6, 8), **{"loop_lag/mean": 0.1, "loop_lag/p99": 0.1, "loop_lag/max": float("nan")})
    text = page(gather(tmp_path))
    assert "nothing measured" in text
    assert "nan" not in re.sub(r"<style>.*</style>", "", text, flags=re.DOTALL).lower()


def test_a_folder_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"holds no run \(no experiment.json, no metrics.jsonl, no store.db\)"):
        gather(tmp_path)
    assert main(["report", str(tmp_path)]) == 1
    assert "holds no run" in capsys.readouterr().err


def test_the_command_writes_the_page_and_reads_while_the_run_goes_on(ran: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with SQLiteStore(ran / "store.db") as store:  # the training holds it
        store_episode(store, "later")
        store.flush_sync()
        before = {path.name for path in ran.iterdir()}
        assert main(["report", str(ran)]) == 0
        assert {path.name for path in ran.iterdir()} - before == {"report.html"}
    out = capsys.readouterr().out
    assert out.endswith(f"page: {ran / 'report.html'}\n")
    assert "13 episodes" in out
    assert main(["report", str(ran), "--out", str(ran / "deep" / "page.html")]) == 1
    assert "there is no folder" in capsys.readouterr().err
    assert main(["report", str(ran), "--out", str(ran)]) == 1
    assert "is a folder" in capsys.readouterr().err


# --- pictures ------------------------------------------------------------------------------------------------------------
def test_a_line_goes_through_its_points() -> None:
    text = line_chart([Line("reward", [(0.0, 0.0), (1.0, 0.5), (2.0, 1.0)])])
    (path,) = re.findall(r'<path d="M([^"]+)" class="line c0"', text)
    points = [tuple(map(float, point.split())) for point in path.split("L")]
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert points[1] == (pytest.approx((points[0][0] + points[2][0]) / 2), pytest.approx((points[0][1] + points[2][1]) / 2))
    assert points[0][1] > points[2][1]  # up is more
    assert "step 2: reward 1" in text


def test_many_steps_are_drawn_in_bins() -> None:
    text = line_chart([Line("reward", [(float(n), float(n)) for n in range(100_000)])])
    assert text.count("<circle") <= POINTS
    bars = bar_chart({float(n): {"a": 1.0, "b": 2.0} for n in range(10_000)}, ["a", "b"], say.seconds)
    assert bars.count("<rect") <= 2 * BARS
    assert "steps 0 to 104: a" in bars


def test_the_parts_of_a_bar_stand_on_each_other() -> None:
    text = bar_chart({1.0: {"a": 1.0, "b": 3.0}}, ["a", "b"], say.seconds)
    (a, b) = [tuple(map(float, found)) for found in re.findall(r'y="([\d.]+)" width="[\d.]+" height="([\d.]+)"', text)]
    assert b[0] + b[1] == pytest.approx(a[0], abs=0.11)
    assert b[1] == pytest.approx(3 * a[1], abs=0.3)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-3, 7), (0.2, 0.21), (1e-9, 3e-9), (5, 5), (0, 0), (-1e6, 1e6), (1, 1.000001)]
)
def test_ticks_are_round_and_hold_all(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low and found[-1] >= high * (1 - 1e-12)
    assert 2 <= len(found) <= 8
    assert found == sorted(set(found))


@pytest.mark.parametrize(
    ("value", "text"), [(0.00012, "0.12 ms"), (0.25, "0.25 s"), (12.34, "12.3 s"), (125, "2m05s"), (7300, "2h01m")]
)
def test_seconds_are_said_in_three_digits(value: float, text: str) -> None:
    assert say.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (999, "999 B"), (1234, "1.23 kB"), (5_000_000, "5 MB"), (2e12, "2000 GB")]
)
def test_sizes_are_said_in_three_digits(value: float, text: str) -> None:
    assert say.size(value) == text


def parity(folder: Path, gaps: list[float], **values: float) -> str:
    sink = JSONL(folder / "metrics.jsonl")
    for step, gap in enumerate(gaps, start=1):
        sink.write(StepMetrics(step, {"gap/mean": gap, "gap/max": 3 * gap, "drift": 0.0, **values}))
    sink.close()
    return summarise(gather(folder))


def test_a_gap_that_stays_is_flat_and_one_that_grows_says_by_how_much(tmp_path: Path) -> None:
    flat, growing = tmp_path / "flat", tmp_path / "growing"
    noise = [1.0, -1.0, 0.5, -0.5, 1.0, -1.0, 0.5, -0.5]
    for folder in (flat, growing):
        folder.mkdir()
    told = parity(flat, [1e-5 + 1e-7 * n for n in noise])
    assert "the gap between engine and learner is 1e-05 on average, at most 3e-05 (batch 1); its mean is flat" in told
    told = parity(growing, [1e-5 + 2e-6 * step + 1e-7 * n for step, n in enumerate(noise)])
    assert re.search(r"at most 7\.2e-05 \(batch 8\); its mean grows by 2e-06 a step \(± \de-08\)", told), told
    section = Page(page(gather(growing))).sections["drift"]
    assert "its mean grows by 2e-06 a step" in section
    assert "step 8: max" in section and "step 8: mean" in section, "the picture of the gap"


def test_too_few_steps_have_no_trend(tmp_path: Path) -> None:
    assert "has too few steps for a trend" in parity(tmp_path, [1e-5, 2e-5])


def test_with_several_policies_each_has_its_gap(tmp_path: Path) -> None:
    write_metrics(
        tmp_path, range(1, 5), **{"asker/gap/mean": 1e-5, "asker/gap/max": 2e-5, "judge/gap/mean": 0.1, "judge/gap/max": 0.2}
    )
    told = summarise(gather(tmp_path))
    assert "gap between engine and learner of asker is 1e-05" in told
    assert "gap between engine and learner of judge is 0.1 on average, at most 0.2 (batch 1); its mean is flat" in told


def test_the_age_of_trained_tokens_is_told(tmp_path: Path) -> None:
    fresh = {"staleness/mean": 0.0, "staleness/max": 0.0, "stale/dropped": 0.0}
    for name, values, words in (
        ("none", {}, "the age of trained tokens was not measured"),
        ("fresh", fresh, "drawn by the weights that learned from it\n"),
        ("stale", {"staleness/mean": 0.75, "staleness/max": 3.0, "stale/dropped": 2.0},
         "drawn 0.75 learner steps before on average, at most 3; 6 groups were refused as too old"),
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        assert words in parity(tmp_path / name, [1e-5] * 3, **values)
