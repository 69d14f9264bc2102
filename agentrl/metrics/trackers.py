"""Sinks that others serve: Weights & Biases, Trackio.

A tracker's server may be slow, or away, so it works in a thread of its own and the training never waits for it; what fails
there is named once in the log, and tried again with the next step. A run keeps its id in the run's folder, so that a
training that goes on goes on in the same run there.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import math
import queue
import secrets
import sys
import threading
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

from agentrl.errors import UserError, capture, describe
from agentrl.metrics.record import StepMetrics

logger = logging.getLogger(__name__)

PATIENCE = 60.0
"""Seconds that `close` waits for what has not been handed over yet."""


class Tracker:
    """What trackers share. A subclass says how to open its run, how to log to it and how to end it."""

    name = ""
    """Short name; also that of the package and of the extra."""

    def __init__(self) -> None:
        if importlib.util.find_spec(self.name) is None:  # asked for now, so that a run does not begin without it
            raise UserError(f'the sink {self.name} needs {self.name}; pip install "agentrl-runtime[{self.name}]"')
        self.folder = Path()
        self.described: Mapping[str, Any] = {}
        self._run: Any = None
        self._step = 0
        self._failed = False
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    # --- of each tracker -------------------------------------------------------------------------------------------------
    def _open(self) -> Any:
        """The tracker's own run."""
        raise NotImplementedError

    def _log(self, run: Any, step: int, values: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def _end(self, run: Any) -> None:
        run.finish()

    # --- of all ----------------------------------------------------------------------------------------------------------
    def begin(self, folder: Path, described: Mapping[str, Any]) -> None:
        """See `OfRun`."""
        self.folder, self.described = folder, described

    def write(self, metrics: StepMetrics) -> None:
        """See `Sink`. What is not finite is left out."""
        self._step = metrics.step
        finite = {name: float(value) for name, value in metrics.values.items() if math.isfinite(value)}
        self._hand_over({**finite, **metrics.texts})

    def note(self, text: str) -> None:
        """See `Sink`; a text under "note"."""
        self._hand_over({"note": text})

    def close(self) -> None:
        """See `Sink`. Waits for the thread, but not for ever."""
        if self._thread is None:
            return
        self._jobs.put(self._finish)
        self._jobs.put(None)
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            logger.warning("%s has not taken everything after %g s and is left behind", self.name, PATIENCE)
        self._thread = None

    def kept_id(self) -> str:
        """The id of this run with the tracker, drawn once for a run's folder."""
        file = self.folder / f"{self.name}.id"
        if not file.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            file.write_text(secrets.token_hex(4))
        return file.read_text().strip()

    def _package(self) -> Any:
        return importlib.import_module(self.name)  # late, and untyped: it need not be there to check this file

    def _hand_over(self, values: Mapping[str, Any]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self.name, daemon=True)
            self._thread.start()
        step = self._step
        self._jobs.put(lambda: self._log(self._opened(), step, values))

    def _opened(self) -> Any:
        if self._run is None:
            self._run = self._open()
        return self._run

    def _finish(self) -> None:
        if self._run is not None:
            self._end(self._run)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            with capture() as caught:
                job()
            if caught.error is not None and not self._failed:
                self._failed = True
                told = "the sink %s failed and the training goes on (metrics.jsonl has what is missing there): %s"
                logger.warning(told, self.name, describe(caught.error))


class WandB(Tracker):
    """Weights & Biases. `project` (also WANDB_PROJECT), and whatever else `wandb.init` takes; needs the extra `wandb`.

    WANDB_MODE=offline writes RUN/wandb without a network, for `wandb sync`. Every metric is drawn over the metric "step": a
    step that comes again after a resume is a second point, never refused as going back.
    """

    name = "wandb"

    def __init__(self, project: str | None = None, **init: Any) -> None:
        super().__init__()
        self._init = ({} if project is None else {"project": project}) | init

    def begin(self, folder: Path, described: Mapping[str, Any]) -> None:
        """See `OfRun`. `UserError` if W&B is to be reached over the network and has no API key."""
        super().begin(folder, described)
        wandb = self._package()
        mode = self._init["mode"] if "mode" in self._init else wandb.setup().settings.mode
        if mode == "online":
            with capture() as caught:
                wandb.login()
            if caught.error is not None:
                raise UserError(
                    f"W&B cannot be used: {describe(caught.error)}; `wandb login`, or WANDB_MODE=offline"
                ) from caught.error

    def _open(self) -> Any:
        wandb = self._package()
        quiet = wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True, x_disable_stats=True)
        if "project" not in self._init and not wandb.setup().settings.project:
            self._init["project"] = "agentrl"
        settings = {
            "id": self.kept_id(), "resume": "allow", "dir": str(self.folder), "name": self.folder.resolve().name,
            "config": dict(self.described), "settings": quiet,
        }  # fmt: skip
        run: Any = wandb.init(**(settings | self._init))
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        return run

    def _log(self, run: Any, step: int, values: Mapping[str, Any]) -> None:
        run.log({"step": step, **values})


class Trackio(Tracker):
    """Trackio: a local database (`trackio show`) or a Space; takes what `trackio.init` takes. Needs the extra `trackio`."""

    name = "trackio"

    def __init__(self, project: str = "agentrl", **init: Any) -> None:
        super().__init__()
        self._init = {"project": project} | init

    def _open(self) -> Any:
        settings = {
            "name": f"{self.folder.resolve().name}-{self.kept_id()}", "resume": "allow", "embed": False,
            "config": dict(self.described), "auto_log_gpu": False, "auto_log_cpu": False,
        }  # fmt: skip
        with _printed_to_log():
            return self._package().init(**(settings | self._init))

    def _log(self, run: Any, step: int, values: Mapping[str, Any]) -> None:
        run.log(dict(values), step=step)

    def _end(self, run: Any) -> None:
        with _printed_to_log():
            run.finish()


@contextlib.contextmanager
def _printed_to_log() -> Generator[None]:
    """What this thread prints goes to the log, for standard output may be a live table; other threads print as ever."""
    own, real = threading.get_ident(), sys.stdout

    class Lines(io.TextIOBase):
        def write(self, text: str) -> int:
            if threading.get_ident() != own:
                return real.write(text)
            if text.strip():
                logger.info("%s", text.strip())
            return len(text)

        def flush(self) -> None:
            real.flush()

    with contextlib.redirect_stdout(Lines()):
        yield
