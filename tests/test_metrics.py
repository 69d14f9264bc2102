"""Metrics written, read back, drawn, and shown to a person."""

from __future__ import annotations

import io
import json
import math
import os
import platform
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from agentrl.errors import UserError
from agentrl.metrics import JSONL, Console, StepMetrics, TensorBoard, before_after_table, draw_curve, read_metrics
from agentrl.metrics.console import COLUMNS, cells, duration, time_shares

FULL = {
    "reward/mean": 0.25,
    "turns_per_episode": 2.5,
    "tool_calls_per_episode": 1.25,
    "tokens_per_second": 1234.5,
    "time/rollout": 6.0,
    "time/learn": 3.0,
    "time/evaluate": 0.5,
    "time/publish": 0.25,
    "time/store": 0.15,
    "time/other": 0.1,
    "left_seconds": 750.0,
}

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tools", ROOT / "workflows")))}


# --- JSONL ----------------------------------------------------------------------------------------------------------------
def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    sink = JSONL(tmp_path / "run" / "metrics.jsonl")
    sink.write(StepMetrics(0, {"held_out/success": 0.5}))
    sink.note("a note")
    sink.write(StepMetrics(1, {"loss": math.nan, "seconds": 2}))
    sink.write(StepMetrics(1, {"held_out/success": 0.75}))
    sink.close()
    first, second = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert first == StepMetrics(0, {"held_out/success": 0.5})
    assert (second.step, second.values["seconds"], second.values["held_out/success"]) == (1, 2.0, 0.75)
    assert math.isnan(second.values["loss"])


def test_a_line_is_in_the_file_before_the_next_is_written(tmp_path: Path) -> None:
    sink = JSONL(tmp_path / "m.jsonl")
    sink.write(StepMetrics(3, {"loss": 0.5}))
    assert read_metrics(tmp_path / "m.jsonl") == (StepMetrics(3, {"loss": 0.5}),)
    sink.close()


def test_every_line_is_json_of_a_flat_object(tmp_path: Path) -> None:
    sink = JSONL(tmp_path / "m.jsonl")
    sink.write(StepMetrics(3, {"loss": math.inf, "reward/mean": 1.0}))
    sink.close()
    session, step = map(json.loads, (tmp_path / "m.jsonl").read_text().splitlines())
    assert session["session"] == 1
    assert session["python"] == platform.python_version()
    assert step == {"step": 3, "loss": None, "reward/mean": 1.0}


def test_nothing_is_made_before_the_first_line(tmp_path: Path) -> None:
    JSONL(tmp_path / "run" / "m.jsonl").close()
    assert not (tmp_path / "run").exists()


def session(path: Path, *steps: tuple[int, float]) -> None:
    sink = JSONL(path)
    for step, loss in steps:
        sink.write(StepMetrics(step, {"loss": loss}))
    sink.close()


def losses(path: Path) -> dict[int, float]:
    return {metrics.step: metrics.values["loss"] for metrics in read_metrics(path)}


def test_a_resumed_run_replaces_what_it_does_again(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    session(path, (1, 0.1), (2, 0.2), (3, 0.3))
    session(path, (2, 0.25), (3, 0.35))
    assert losses(path) == {1: 0.1, 2: 0.25, 3: 0.35}


def test_steps_that_a_resumed_run_has_not_come_to_again_are_gone(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    session(path, (1, 0.1), (2, 0.2), (3, 0.3))
    session(path, (2, 0.25))
    assert losses(path) == {1: 0.1, 2: 0.25}


def test_an_evaluation_at_the_step_of_resuming_leaves_that_step_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    session(path, (1, 0.1), (2, 0.2))
    sink = JSONL(path)
    sink.write(StepMetrics(2, {"held_out/success": 0.5}))
    sink.close()
    assert read_metrics(path)[-1] == StepMetrics(2, {"loss": 0.2, "held_out/success": 0.5})


def test_a_line_cut_off_by_a_crash_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    session(path, (1, 0.1), (2, 0.2))
    path.write_text(path.read_text()[:-7])
    assert losses(path) == {1: 0.1}
    session(path, (2, 0.25))
    assert losses(path) == {1: 0.1, 2: 0.25}


def test_a_foreign_line_is_refused_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    session(path, (1, 0.1))
    path.write_text("hello\n" + path.read_text().partition("\n")[2])
    with pytest.raises(UserError, match=r"m\.jsonl:1 is no metrics entry: 'hello'"):
        read_metrics(path)


def test_a_metric_with_a_name_of_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be called 'step'"):
        JSONL(tmp_path / "m.jsonl").write(StepMetrics(1, {"step": 1.0}))


def test_metrics_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are no metrics at"):
        read_metrics(tmp_path / "none.jsonl")


# --- TensorBoard ----------------------------------------------------------------------------------------------------------
def scalars(folder: Path, name: str) -> dict[int, float]:
    pytest.importorskip("tensorboard")
    code = (
        "import json, sys; from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n"
        "found = EventAccumulator(sys.argv[1]); found.Reload()\n"
        "print(json.dumps([[e.step, e.value] for e in found.Scalars(sys.argv[2])]))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(folder), name], capture_output=True, text=True, check=True
    )
    return {int(step): value for step, value in json.loads(done.stdout)}


def test_tensorboard_reads_what_was_written_and_replaced(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    for steps in ([(1, 0.5), (2, 0.25), (3, 0.125)], [(2, 1.0)]):
        sink = TensorBoard(tmp_path / "tb")
        sink.note("begun")
        for step, loss in steps:
            sink.write(StepMetrics(step, {"loss": loss, "gap/mean": math.nan}))
        sink.close()
    assert scalars(tmp_path / "tb", "loss") == {1: 0.5, 2: 1.0}


def test_tensorboard_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "agentrl-runtime\[charts\]"'):
        TensorBoard(tmp_path)


# --- for people -----------------------------------------------------------------------------------------------------------
def test_a_row_shows_every_column() -> None:
    row = dict(zip(COLUMNS, cells(7, FULL | {"held_out/success": 0.8125}, 100), strict=True))
    assert row == {
        "step": "7/100", "held-out": "81.2%", "reward": "0.250", "turns": "2.50", "tools": "1.25", "tok/s": "1234",
        "rollout": "60%", "learn": "30%", "eval": "5%", "other": "5%", "left": "12m30s",
    }  # fmt: skip


def test_what_is_not_known_is_a_dash() -> None:
    assert cells(7, {"loss": 1.0, "reward/mean": math.nan}) == ("7", *["-"] * 10)


def test_the_shares_of_time_sum_to_one_and_name_all_other_stages_other() -> None:
    shares = time_shares(FULL | {"time/credit": 10.0})
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["other"] == pytest.approx(10.5 / 20)
    assert time_shares({}) == {}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59.4, "59s"),
        (60, "1m00s"),
        (750, "12m30s"),
        (3600, "1h00m"),
        (11100, "3h05m"),
        (187200, "2d04h"),
        (None, "-"),
        (math.inf, "-"),
    ],
)
def test_durations_are_read_at_a_glance(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_log_gets_aligned_lines_now_and_then(tmp_path: Path) -> None:
    clock, stream = Clock(), io.StringIO()
    console = Console(stream, steps=100, every=10.0, clock=clock)
    assert not console.live
    for step in range(1, 7):
        clock.now = step * 4.0
        console.write(StepMetrics(step, FULL | ({"held_out/success": 0.5} if step == 3 else {})))
    console.note("saved")
    console.close()
    lines = stream.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["step", "1/100", "3/100", "6/100", "saved"]
    assert lines[0].split() == list(COLUMNS)
    assert len({len(line) for line in lines[:4]}) == 1
    assert [line.split()[1] for line in lines[1:4]] == ["-", "50.0%", "50.0%"]
    assert "\x1b" not in stream.getvalue()


def test_the_last_step_is_always_in_the_log() -> None:
    clock, stream = Clock(), io.StringIO()
    console = Console(stream, every=1000.0, clock=clock)
    for step in (1, 2, 3):
        console.write(StepMetrics(step, FULL))
    console.close()
    assert [line.split()[0] for line in stream.getvalue().splitlines()] == ["step", "1", "3"]


def test_a_value_of_an_earlier_step_is_not_shown_as_this_steps() -> None:
    stream = io.StringIO()
    console = Console(stream, every=0.0, clock=Clock())
    console.write(StepMetrics(1, {"reward/mean": 0.5, "held_out/success": 0.25}))
    console.write(StepMetrics(2, {"turns_per_episode": 2.0}))
    last = dict(zip(COLUMNS, stream.getvalue().splitlines()[-1].split(), strict=True))
    assert (last["held-out"], last["reward"], last["turns"]) == ("25.0%", "-", "2.00")


LIVE = """
import sys
from agentrl.metrics import Console, StepMetrics
console = Console(sys.stdout, steps=30)
assert console.live
for step in range(1, 31):
    values = {"reward/mean": step / 100, "turns_per_episode": 2.0, "time/rollout": 3.0, "time/learn": 1.0}
    console.write(StepMetrics(step, values | ({"held_out/success": 0.5} if step == 10 else {})))
    if step == 20:
        console.note("saved [bold]checkpoint[/bold]")
console.close()
print("the end")
"""


def screen_of(program: str) -> list[str]:
    """What stands on a terminal of 100 by 30 after a program has run in it."""
    pyte = pytest.importorskip("pyte")
    pytest.importorskip("rich")
    leader, follower = pty.openpty()
    environment = ENVIRONMENT | {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    child = subprocess.Popen([sys.executable, "-c", program], stdout=follower, stderr=follower, env=environment)
    os.close(follower)
    screen = pyte.Screen(100, 30)
    stream = pyte.ByteStream(screen)
    while True:
        try:
            data = os.read(leader, 65536)
        except OSError:  # Linux says so when the other side is closed
            break
        if not data:
            break
        stream.feed(data)
    os.close(leader)
    assert child.wait() == 0
    return [line.rstrip() for line in screen.display if line.strip()]


def test_a_terminal_gets_one_live_table() -> None:
    lines = screen_of(LIVE)
    headers = [line for line in lines if line.split() == list(COLUMNS)]
    steps = [line.split()[0] for line in lines if "/30" in line]
    assert len(headers) == 1
    assert steps == [f"{step}/30" for step in range(16, 31)]
    last = dict(zip(COLUMNS, lines[[line.split()[0] for line in lines].index("30/30")].split(), strict=True))
    assert (last["held-out"], last["reward"], last["rollout"], last["learn"]) == ("50.0%", "0.300", "75%", "25%")
    assert lines[0] == "saved [bold]checkpoint[/bold]"
    assert lines[-1] == "the end"


# --- charts ---------------------------------------------------------------------------------------------------------------
def test_a_curve_is_drawn_with_its_lines_in_view(tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    from matplotlib import image

    series = {"held-out": [(0.0, 0.1), (20.0, 0.5), (40.0, 0.8)], "sampled": [(float(x), x / 50) for x in range(41)]}
    path = tmp_path / "deep" / "curve.png"
    draw_curve(series, path, x="batch", y="success", title="search")
    pixels = image.imread(path)
    height, width = pixels.shape[:2]
    assert height >= 400
    assert width >= 700
    rgb = pixels[..., :3]
    assert (rgb < 0.99).any(axis=2).mean() > 0.01
    for colour in ("#0072b2", "#d55e00"):
        near = abs(rgb - matplotlib.colors.to_rgb(colour)).max(axis=2) < 0.05
        assert near.sum() > 200, f"no line of {colour}"
        columns = near.any(axis=0).nonzero()[0]
        assert columns[-1] - columns[0] > width / 2


def test_equal_data_give_equal_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("a.png", "b.png"):
        draw_curve({"one": [(0.0, 1.0), (1.0, math.nan), (2.0, 3.0)]}, tmp_path / name, x="x", y="y", title="t")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(UserError, match="nothing to draw"):
        draw_curve({"one": [(0.0, math.nan)]}, tmp_path / "a.png", x="x", y="y")


def test_before_and_after_stand_side_by_side() -> None:
    table = before_after_table({"success": 0.125, "turns": 2.0, "gone": 1.0}, {"success": 0.75, "turns": 2.0, "new": math.nan})
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert rows[0] == ["", "before", "after", "change"]
    assert rows[2:] == [
        ["success", "0.125", "0.75", "+0.625"],
        ["turns", "2", "2", "+0"],
        ["gone", "1", "-", ""],
        ["new", "-", "-", ""],
    ]
    assert len({len(line) for line in table.splitlines()}) == 1


def test_importing_metrics_imports_no_package_that_draws() -> None:
    code = (
        "import sys, agentrl.metrics; print([m for m in ('rich', 'matplotlib', 'tensorboardX', 'torch') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], env=ENVIRONMENT, text=True).strip() == "[]"
