"""`agentrl credit`: credit over a run's stored episodes, and where two estimators differ, turn by turn."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.errors import UserError

if TYPE_CHECKING:
    from agentrl.credit.compare import Comparison, Recorded
    from agentrl.credit.contract import Estimator, Floats
    from agentrl.episode import Group
    from agentrl.store.sqlite import SQLiteStore

ABOUT = "credit over stored episodes, without sampling; where two estimators differ, turn by turn"
RECORDED = "recorded"
_NAME = "a short name, module:name or file.py:name"


def options(credit: argparse.ArgumentParser) -> None:
    """What may be written behind the command."""
    credit.add_argument("folder", metavar="RUN", type=Path)
    credit.add_argument("--with", required=True, metavar="A", dest="first", help=f"the estimator: {_NAME}")
    about = f"another, or {RECORDED} = what the run was trained with (the default, if there is any)"
    credit.add_argument("--against", metavar="B", dest="second", help=about)
    credit.add_argument("--transforms", metavar="NAMES", help="reward transforms that come before, with commas between them")
    about = "such as with.gamma=0.9, against.std=none, transforms.0.alpha=0.3; repeatable"
    credit.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings", help=about)
    credit.add_argument("--split", default="train", help="over these episodes (default train)")
    credit.add_argument("--step", type=int, metavar="N", help="only those sampled for this batch")
    credit.add_argument("--tokens", action="store_true", help="read tokens too, for an estimator that looks at them; slower")
    credit.add_argument("-n", type=int, default=20, metavar="N", dest="count", help="show the N turns that differ most (20)")
    credit.add_argument("--full", action="store_true", help="show all turns of their episodes, and do not shorten texts")


def run(arguments: argparse.Namespace) -> int:
    """Prints both estimators' figures, how they go together, and the turns that differ most."""
    import gc

    gc.disable()  # of hundreds of thousands of objects none is garbage, and each collection looks at all
    try:
        _run(arguments)
    finally:
        gc.enable()
    return 0


def _run(arguments: argparse.Namespace) -> None:
    import time

    from agentrl.credit.compare import compare, learned
    from agentrl.store.sqlite import SQLiteStore

    folder: Path = arguments.folder
    plug_ins = _plug_ins(arguments)
    first: Estimator = plug_ins["with"]
    began = time.perf_counter()
    with SQLiteStore(folder if folder.is_file() else folder / "store.db", read_only=True) as store:
        entropy = any(plug_ins[name].needs.entropy for name in ("with", "against") if name in plug_ins)
        steps = _read(store, arguments, tokens=arguments.tokens or entropy)
        second, told = _second(store, arguments, plug_ins)
        policies = learned(store) or None
    read = time.perf_counter()
    min_group, unused = _described(folder, plug_ins["transforms"])
    found = compare(steps, first, second, transforms=plug_ins["transforms"], min_group=min_group, policies=policies)
    ended = time.perf_counter()
    names = [_called(first), *([told] if second is not None else [])]
    for line in (*_summary(found, names, (read - began, ended - read)), *unused):
        print(line)
    for line in _largest(found, max(1, arguments.count), arguments.full):
        print(line)


def _plug_ins(arguments: argparse.Namespace) -> dict[str, Any]:
    """The values that the options name, with the settings in them."""
    from agentrl.config import put_settings, read_plug_in
    from agentrl.credit import ESTIMATORS
    from agentrl.credit.contract import Estimator
    from agentrl.transforms import TRANSFORMS, RewardTransform

    named = arguments.transforms.split(",") if arguments.transforms else []
    made: dict[str, Any] = {"with": read_plug_in(Estimator, arguments.first, ESTIMATORS)}
    if arguments.second not in (None, RECORDED):
        made["against"] = read_plug_in(Estimator, arguments.second, ESTIMATORS)
    transforms = {"transforms": tuple(read_plug_in(RewardTransform, name.strip(), TRANSFORMS) for name in named)}
    # apart, for a field's name alone (gamma=0.9) is of both estimators
    of_transforms = [setting for setting in arguments.settings if setting.partition(".")[0].strip() == "transforms"]
    of_estimators = [setting for setting in arguments.settings if setting not in of_transforms]
    return {**put_settings(made, of_estimators), **put_settings(transforms, of_transforms)}


def _read(store: SQLiteStore, arguments: argparse.Namespace, *, tokens: bool) -> list[list[Group]]:
    from agentrl.credit.compare import read_steps
    from agentrl.store.contract import EpisodeFilter

    steps = read_steps(store, EpisodeFilter(split=arguments.split, step=arguments.step), tokens=tokens)
    if not any(group.finished for groups in steps for group in groups):
        asked = f"split {arguments.split!r}" + (f" and step {arguments.step}" if arguments.step is not None else "")
        there = ", ".join(sorted({head.split for head in store.heads()})) or "no episode at all"
        raise UserError(f"{store.path} has no finished episode of {asked}; it has {there}; see `agentrl view RUN`")
    return steps


def _second(
    store: SQLiteStore, arguments: argparse.Namespace, plug_ins: Mapping[str, Any]
) -> tuple[Estimator | Recorded | None, str]:
    """What the first is compared with, and how it is called."""
    from agentrl.credit.compare import read_recorded

    if "against" in plug_ins:
        return plug_ins["against"], _called(plug_ins["against"])
    recorded = read_recorded(store, arguments.step)
    if not recorded and arguments.second == RECORDED:
        raise UserError(f"{store.path} has no committed learner step to compare with; give --against another estimator")
    return recorded or None, "as recorded when the run was trained"


def _described(folder: Path, transforms: Sequence[Any]) -> tuple[int, list[str]]:
    """The run's `min_group`; and a line if it was trained with transforms and none are given."""
    import json

    file = folder / "experiment.json"
    if not file.is_file():
        return 2, []
    experiment = json.loads(file.read_text())["experiment"]
    used = [each["type"] for each in experiment["transforms"]] if "transforms" in experiment else []
    lines = [f"the run was trained with transforms ({', '.join(used)}) and none are given here: --transforms"]
    return int(experiment["min_group"]), lines if used and not transforms else []


def _called(estimator: Estimator) -> str:
    from agentrl.view.text import visible

    return visible(repr(estimator))


# --- what is printed --------------------------------------------------------------------------------------------------------
def _summary(found: Comparison, names: Sequence[str], seconds: tuple[float, float]) -> Iterator[str]:
    import numpy as np

    lost = f" ({found.lost} lost)" if found.lost else ""
    what = f"{len(found.episodes)} episodes{lost} in {len(found.groups)} groups of {found.steps} batches"
    yield f"{what}, {len(found.turns)} turns; read in {seconds[0]:.2f} s, credit in {seconds[1]:.2f} s"
    yield ""
    yield f"{'':8}{'mean':>10}{'std':>10}{'zero':>8}{'positive':>10}"
    columns = [found.first] if found.second is None else [found.first, found.second]
    for label, name, column in zip(("with", "against"), names, columns, strict=False):
        known = column[~np.isnan(column)]
        if not len(known):
            yield f"{label:8}{'':38}  {name}: of none of these turns"
            continue
        zero, positive = np.mean(known == 0), np.mean(known > 0)
        yield f"{label:8}{known.mean():10.4f}{known.std():10.4f}{zero:8.1%}{positive:10.1%}  {name}"
    if found.second is not None:
        yield _together(found.first, found.second)


def _together(first: Floats, second: Floats) -> str:
    """How two columns go together, in words."""
    import numpy as np

    both = ~np.isnan(second)
    a, b = first[both], second[both]
    if not len(a):
        return "no turn has both"
    moves = a.std() > 0 and b.std() > 0
    correlation = f"correlation {np.corrcoef(a, b)[0, 1]:.3f}" if moves else "no correlation, as one is the same everywhere"
    differs, opposite = np.mean(np.sign(a) != np.sign(b)), np.mean(a * b < 0)
    signs = f"the sign differs on {differs:.1%} of the turns, and is the opposite on {opposite:.1%}"
    return f"{correlation}; {signs}" + ("" if both.all() else f"; {len(a)} of {len(first)} turns were trained")


def _largest(found: Comparison, count: int, full: bool) -> Iterator[str]:
    """The turns that differ most, those of an episode together, with what they may differ for: the rewards."""
    import shutil

    from agentrl.view.text import visible

    largest = found.largest(count)
    yield ""
    if not largest:
        yield "no turn differs" if found.second is not None else "no turn has credit"
        return
    yield f"{'turns that differ most' if found.second is not None else 'largest'}: {len(largest)}"
    width = max(60, shutil.get_terminal_size((120, 24)).columns)
    rewards = {
        group.id: [episode.reward for episode in group.finished if episode.source != "reference"] for group in found.groups
    }
    episode_of = found.episode.tolist()
    agents = max(len(visible(found.turns[t].agent)) for t in largest) + 4
    second = "" if found.second is None else f"{'against':>10}{'difference':>12}"
    for number in dict.fromkeys(episode_of[t] for t in largest):
        episode = found.episodes[number]
        others = rewards[episode.group]
        mean = sum(others) / len(others)
        yield ""
        yield visible(f"{episode.id}  reward {episode.reward:.4g}, its group of {len(others)} has {mean:.4g} on average")
        yield f"  {'turn':{agents}}{'return':>10}{'with':>10}{second}"
        for t in range(len(found.turns)) if full else sorted(largest):
            if episode_of[t] == number:
                yield from _line(found, t, agents, width, full)


def _line(found: Comparison, t: int, agents: int, width: int, full: bool) -> Iterator[str]:
    from agentrl.view.text import visible, wrap

    turn = found.turns[t]
    numbers = f"{found.returns[t]:10.3f}{found.first[t]:10.3f}"
    if found.second is not None:
        numbers += f"{found.second[t]:10.3f}{found.difference[t]:12.3f}"
    lead = f"  {f'{visible(turn.agent)} {turn.index}':{agents}}{numbers}  {'' if turn.valid else '(invalid) '}"
    if not full:
        text = " ".join(visible(turn.text).split())
        yield f"{lead}{wrap(text, width - len(lead))[0] if len(lead) + 20 < width else ''}".rstrip()
        return
    yield lead.rstrip()
    for line in visible(turn.text).split("\n"):
        yield from (f"      {piece}" for piece in wrap(line, width - 6))
