"""A run: one output folder, and how a training goes on from it.

experiment.json   the resolved experiment, the target and the settings it came from
store.db          episodes, journals, learner steps
checkpoints/POLICY/step-000040/   Hugging Face layout, with the optimiser's state
metrics.jsonl, tensorboard/
"""

from __future__ import annotations

import json
import logging
import shutil
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrl import faults
from agentrl.config import difference, experiment_json
from agentrl.effect import digest_request
from agentrl.engines.contract import EngineInfo
from agentrl.errors import LearnerError, UserError
from agentrl.experiment import Experiment
from agentrl.learning.contract import Learner
from agentrl.learning.replay import relearn
from agentrl.runtime.policies import checkpoints
from agentrl.store.contract import Store, StoredStep
from agentrl.store.sqlite import SQLiteStore

logger = logging.getLogger(__name__)

_ENGINE = "engine.json"
_MAY_DIFFER = ("steps", "eval_every", "eval_tasks", "checkpoint_every", "keep_checkpoints", "limits", "held_out")
"""What may change when a run goes on: nothing that decides on weights."""


@dataclass(frozen=True, slots=True)
class Run:
    """One output folder."""

    folder: Path
    lineage: str

    @classmethod
    def create(
        cls, folder: Path, experiment: Experiment[Any, Any], *, target: str, settings: Sequence[str], fresh: bool
    ) -> Run:
        """The folder of this experiment, new or gone on with. `UserError` if another experiment lives there."""
        described = experiment_json(experiment)
        file = folder / "experiment.json"
        if fresh and file.exists():
            SQLiteStore(folder / "store.db").__enter__().__exit__(None, None, None)  # refuses while another process trains here
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if file.exists():
            found = json.loads(file.read_text())
            changed = [text for text in difference(found["experiment"], described) if not text.startswith(_MAY_DIFFER)]
            if changed:
                what = "; ".join(changed[:5])
                raise UserError(
                    f"{folder} holds a run of another experiment: {what}; give another --out, or --fresh to begin anew"
                )
        elif any(folder.iterdir()):
            raise UserError(f"{folder} is not empty and holds no run; give another --out")
        for draft in folder.glob("checkpoints/*/.*.draft"):  # a checkpoint that a crash cut short
            shutil.rmtree(draft)
        lineage = digest_request(experiment.seed, experiment.workflow.name).hex()[:8]
        document = {"target": target, "settings": list(settings), "lineage": lineage, "experiment": described}
        _write_atomically(file, json.dumps(document, indent=1))
        return cls(folder, lineage)

    @classmethod
    def find(cls, folder: Path) -> Run:
        """A run that exists."""
        file = Path(folder) / "experiment.json"
        if not file.is_file():
            raise UserError(f"{folder} holds no run (no experiment.json); give the --out folder of a training")
        return cls(Path(folder), json.loads(file.read_text())["lineage"])

    @property
    def described(self) -> dict[str, Any]:
        """What experiment.json says: target, settings, experiment."""
        return json.loads((self.folder / "experiment.json").read_text())

    def store(self, *, read_only: bool = False) -> SQLiteStore:
        """The run's store, not entered yet."""
        return SQLiteStore(self.folder / "store.db", read_only=read_only, fault=faults.point)

    def note_engine(self, info: EngineInfo) -> None:
        """Keeps what the engine says of itself, for replays without one."""
        document = {"name": info.name, "vocab_size": info.vocab_size, "max_context": info.max_context}
        _write_atomically(self.folder / _ENGINE, json.dumps(document))

    @property
    def max_context(self) -> int:
        """The context of the engine that the run was sampled with."""
        file = self.folder / _ENGINE
        if not file.is_file():
            raise UserError(f"{self.folder} does not say which engine it was sampled with (no {_ENGINE})")
        return int(json.loads(file.read_text())["max_context"])

    def checkpoints(self, policy: str) -> list[Path]:
        """The policy's checkpoints, oldest first."""
        return checkpoints(self.folder, policy)

    def save(self, policy: str, learner: Learner, batch: int, keep: int) -> Path:
        """Saves the learner as it is before batch `batch`; older checkpoints beyond `keep` go."""
        folder = self.folder / "checkpoints" / policy / f"step-{batch:06d}"
        faults.point("checkpoint.begun")
        learner.save(folder)
        faults.point("checkpoint.done")
        for old in self.checkpoints(policy)[:-keep]:
            shutil.rmtree(old)
        return folder


def restore(run: Run, store: Store, learners: Mapping[str, Learner]) -> tuple[int, Any]:
    """Brings every learner to where the run was; gives the next batch and the task source's state (None at the start).

    From the newest checkpoint that can be read, then by learning again from the recorded batches after it. The next batch is
    the first that not all policies have committed.
    """
    begun = [step for name in learners if (step := _last(run, store, name)) is not None]
    if not learners or len(begun) < len(learners):
        return 0, None
    following = min(step.step for step in begun) + 1
    state = next(step.state for step in begun if step.step == following - 1)
    for name, learner in learners.items():
        _restore_one(run, store, name, learner, following)
    return following, state


def _last(run: Run, store: Store, policy: str) -> StoredStep | None:
    """The newest committed batch; a checkpoint before batch n tells that n - 1 is committed, so older ones need no look."""
    saved = run.checkpoints(policy)
    after = int(saved[-1].name.removeprefix("step-")) - 2 if saved else -1
    return next(iter(deque(store.steps(policy, after=after), maxlen=1)), None)


def _restore_one(run: Run, store: Store, policy: str, learner: Learner, following: int) -> None:
    for folder in reversed(run.checkpoints(policy)):
        try:
            learner.restore(folder)
            break
        except (LearnerError, UserError) as error:
            logger.warning("%s; going back to an older checkpoint and learning again from the recorded batches", error)
    began = learner.version.step
    try:
        relearn(store, policy, learner, before=following)
    except LearnerError as error:
        raise LearnerError(f"{run.folder}: {error}; or begin anew with --fresh") from error
    again = learner.version.step - began
    logger.info("%s goes on at batch %d: %s, %d recorded batches learned again", policy, following, learner.version, again)


def _write_atomically(file: Path, text: str) -> None:
    draft = file.with_suffix(".draft")
    draft.write_text(text)
    draft.replace(file)
