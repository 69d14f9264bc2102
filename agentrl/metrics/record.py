"""What a step measured, and the sinks that keep it: a JSONL file, TensorBoard."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import math
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO, runtime_checkable

from agentrl.episode import EMPTY_MAP
from agentrl.errors import UserError, capture


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """Numbers of one learner step, by name. A name is measured at most once a step; more may come in a second value."""

    step: int
    values: Mapping[str, float]
    texts: Mapping[str, str] = EMPTY_MAP
    """What is no number, such as the id of the slowest episode."""

    def __post_init__(self) -> None:
        if self.step < 0:
            raise UserError(f"a step is >= 0, got {self.step}")


class Sink(Protocol):
    """Where metrics go. `write` is called in the order of steps; after a resume the steps since the checkpoint come again.

    What a sink raises is logged once and ends no training.
    """

    def write(self, metrics: StepMetrics) -> None: ...

    def note(self, text: str) -> None:
        """A line for people."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class OfRun(Protocol):
    """A sink that wants to know its run; `begin` is called before the first metric, and may refuse with a `UserError`."""

    def begin(self, folder: Path, described: Mapping[str, Any]) -> None:
        """The run's folder, and the experiment as experiment.json has it."""
        ...


class JSONL:
    """A line for each step written, flushed at once: {"step": 3, "loss": 0.5, ...}; nan and infinities are null.

    Append-only, and opened by the first line (a run's folder may not exist before). Each opening begins with a line
    {"session": n, "began": Unix time, and versions}: what a resumed run writes stands in the place of what earlier sessions
    wrote of that step, and takes back what they wrote of later ones. `read_metrics` gives what is valid.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: TextIO | None = None

    def write(self, metrics: StepMetrics) -> None:
        """See `Sink`."""
        reserved = {"step", "session", "note"} & (metrics.values.keys() | metrics.texts.keys())
        if reserved:
            raise UserError(f"a metric cannot be called {reserved.pop()!r}, which the file uses itself; give it another name")
        numbers = {name: float(value) for name, value in metrics.values.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self._line({"step": metrics.step, **finite, **metrics.texts})

    def note(self, text: str) -> None:
        """See `Sink`."""
        self._line({"note": text})

    def close(self) -> None:
        """See `Sink`."""
        if self._file is not None:
            self._file.close()

    def _line(self, entry: Mapping[str, Any]) -> None:
        if self._file is None:
            self._file = self._opened()
        self._file.write(json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()

    def _opened(self) -> TextIO:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        session, torn = _last_session(self.path)
        file = self.path.open("a", encoding="utf-8")
        # a crash in the middle of a line: it ends here, and the reader passes over it
        file.write(("\n" if torn else "") + json.dumps({"session": session + 1, "began": time.time()} | _versions()) + "\n")
        return file


def read_metrics(path: str | Path) -> tuple[StepMetrics, ...]:
    """The valid steps of a JSONL file in order, one entry a step; null is nan. `UserError` names a line that is no entry."""
    file = Path(path)
    if not file.is_file():
        raise UserError(f"there are no metrics at {file}; give the metrics.jsonl of a run")
    steps: dict[int, dict[str, Any]] = {}
    earlier: set[int] = set()
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        entry = _entry(line)
        if entry is None:
            follows = next((later for later in lines[number:] if later), None)
            if line and follows is not None and "session" not in (_entry(follows) or {}):
                raise UserError(f"{file}:{number} is no metrics entry: {line[:80]!r}")
        elif "session" in entry:
            earlier = set(steps)
        elif "step" in entry:
            step = int(entry.pop("step"))
            for stale in [known for known in earlier if known > step]:
                del steps[stale]
                earlier.remove(stale)
            steps.setdefault(step, {}).update(entry)
    return tuple(_step(step, entry) for step, entry in sorted(steps.items()))


def _step(step: int, entry: Mapping[str, Any]) -> StepMetrics:
    texts = {name: value for name, value in entry.items() if isinstance(value, str)}
    numbers = {name: math.nan if value is None else float(value) for name, value in entry.items() if name not in texts}
    return StepMetrics(step, numbers, texts)


def read_sessions(path: str | Path) -> tuple[dict[str, Any], ...]:
    """The first lines of the sessions in a JSONL file: number, Unix time, versions of what it ran with."""
    lines = Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    return tuple(entry for entry in map(_entry, lines) if entry is not None and "session" in entry)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("agentrl-runtime", "torch", "numpy"):
        with capture():  # it may run from source, or without torch
            found[name] = importlib.metadata.version(name)
    return found


def _entry(line: str) -> dict[str, Any] | None:
    value: Any = None
    with capture():
        value = json.loads(line)
    return value if isinstance(value, dict) else None


def _last_session(path: Path) -> tuple[int, bool]:
    """Number of the last session in the file, and whether its last line was cut off."""
    if not path.is_file():
        return 0, False
    text = path.read_text(encoding="utf-8", errors="replace")
    sessions = [entry["session"] for entry in map(_entry, text.split("\n")) if entry is not None and "session" in entry]
    return max(sessions, default=0), bool(text) and not text.endswith("\n")


class TensorBoard:
    """Scalars for TensorBoard in a folder, by default `tensorboard` in the run's. Needs the extra `charts`.

    Opened at the first write: what an earlier session wrote from that step on is marked as replaced, as TensorBoard does it.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        if importlib.util.find_spec("tensorboardX") is None:  # asked for now, so that a run does not begin without it
            raise UserError('TensorBoard needs tensorboardX; pip install "agentrl-runtime[charts]"')
        self.folder = Path(folder or "tensorboard")
        self._given = folder is not None
        self._writer: Any = None
        self._notes: list[str] = []
        self._step = 0

    def begin(self, folder: Path, described: Mapping[str, Any]) -> None:
        """See `OfRun`."""
        if not self._given:
            self.folder = folder / "tensorboard"

    def write(self, metrics: StepMetrics) -> None:
        """See `Sink`. What is not finite is left out."""
        self._step = metrics.step
        writer = self._opened()
        for name, value in metrics.values.items():
            if math.isfinite(value):
                writer.add_scalar(name, float(value), metrics.step)
        writer.flush()

    def note(self, text: str) -> None:
        """See `Sink`; a text under "notes"."""
        if self._writer is None:
            self._notes.append(text)
        else:
            self._writer.add_text("notes", text, self._step)

    def close(self) -> None:
        """See `Sink`."""
        if self._writer is None and self._notes:
            self._opened()
        if self._writer is not None:
            self._writer.close()

    def _opened(self) -> Any:
        if self._writer is None:
            from tensorboardX import SummaryWriter

            earlier = len(list(self.folder.glob("events.out.tfevents.*"))) if self.folder.is_dir() else 0
            self._writer = SummaryWriter(
                str(self.folder),
                purge_step=self._step if earlier else None,
                filename_suffix=f".{earlier}",  # the name has seconds only: two openings within one would be one file
            )
            for text in self._notes:
                self._writer.add_text("notes", text, self._step)
        return self._writer
