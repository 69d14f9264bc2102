"""Settings by name (`credit.gamma=0.9`) put into an experiment.

A setting is `path=value`. The path walks frozen dataclasses by field, mappings by key and sequences by number; a field's name
given to a mapping that has no such key goes to every value of it (`policies.model=/x`). The value is read as the field's
annotation says; a field that holds a plug-in takes a short name, `module:name` or `file.py:name`, one that holds several takes
several with commas between them. Settings apply in order, so `credit=gigpo` comes before `credit.gamma=0.9`. Nothing is
ignored: a setting that cannot take effect is an error.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Union, cast, get_args, get_origin

from agentrl.config.values import CannotRead, expected, hints_of, lacking, read_value
from agentrl.errors import UserError, capture, describe
from agentrl.resolve import Offered, resolve, unknown

if TYPE_CHECKING:
    from agentrl.experiment import Experiment


def short_names(hint: Any) -> Mapping[str, Any] | None:
    """The short names that a field of this annotation takes, in `| None` and `Sequence[]` as well; None if it takes none."""
    from agentrl.credit import ESTIMATORS, Estimator
    from agentrl.engines.specs import VLLM, EngineSpec, Local, OpenAI, SGLang
    from agentrl.experiment import Policy, reference_policy
    from agentrl.learning.critic import Critic
    from agentrl.learning.optimisers import AdamW, Muon, Optimiser
    from agentrl.learning.schedules import Constant, Cosine, Linear, Schedule
    from agentrl.objectives import OBJECTIVES, Objective
    from agentrl.probes import GAUGES, Gauge
    from agentrl.rollout import PLANS, RolloutPlan
    from agentrl.sandbox import SandboxSpec
    from agentrl.transforms import TRANSFORMS, RewardTransform

    tables: dict[Any, Mapping[str, Any]] = {
        Estimator: ESTIMATORS,
        Critic: {"on": Critic},
        Policy: {"on": reference_policy},
        RewardTransform: TRANSFORMS,
        Objective: OBJECTIVES,
        RolloutPlan: PLANS,
        Gauge: GAUGES,
        SandboxSpec: Offered("agentrl.sandboxes"),
        EngineSpec: {"local": Local, "openai": OpenAI, "sglang": SGLang, "vllm": VLLM},
        Optimiser: {"adamw": AdamW, "muon": Muon},
        Schedule: {"constant": Constant, "linear": Linear, "cosine": Cosine},
    }
    asked = tuple(_kinds(hint))
    return next((table for kind, table in tables.items() if kind in asked), None)


def _kinds(hint: Any) -> Iterator[Any]:
    """The annotation itself, and those inside `| None` and `Sequence[]`."""
    yield hint
    if get_origin(hint) in (Sequence, Union, types.UnionType):
        for inner in get_args(hint):
            yield from _kinds(inner)


@dataclass(frozen=True, slots=True)
class _Setting:
    path: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        return f"{'.'.join(self.path)}={self.text}"


def apply_settings(experiment: Experiment[Any, Any], settings: Sequence[str]) -> Experiment[Any, Any]:
    """The experiment with the settings in it. `UserError` names the setting, what was got and what there is."""
    changed: Experiment[Any, Any] = put_settings(experiment, settings)
    if settings:
        with _named("these settings do not go together"):
            _ = changed.by_name
    return changed


def put_settings(owner: Any, settings: Sequence[str]) -> Any:
    """`owner`, a dataclass or a mapping of some, with the settings in it."""
    parsed = [_parse(text) for text in settings]
    _check_order(parsed)
    for setting in parsed:
        _refuse_shadowed(owner, setting, parsed)
    # what is said of all goes first, and what is said of one then stands in its place
    for_all = [setting for setting in parsed if _shared_at(owner, setting.path) is not None]
    for setting in (*for_all, *(setting for setting in parsed if setting not in for_all)):
        owner = _put(owner, setting.path, setting, ())
    return owner


def _parse(text: str) -> _Setting:
    path, equals, value = text.partition("=")
    names = tuple(name.strip() for name in path.split("."))
    if not equals or not all(names):
        raise UserError(f"a setting is `name=value` or `name.field=value`, got {text!r}")
    return _Setting(names, value.strip())


def _check_order(settings: Sequence[_Setting]) -> None:
    """No setting twice, and none whose owner a later one replaces."""
    seen: dict[tuple[str, ...], _Setting] = {}
    for setting in settings:
        if setting.path in seen:
            raise UserError(f"{'.'.join(setting.path)} is set twice: {seen[setting.path]} and {setting}; give it once")
        for path, earlier in seen.items():
            if path[: len(setting.path)] == setting.path:
                raise UserError(f"{earlier} has no effect, for {setting} behind it replaces its owner; give {setting} first")
        seen[setting.path] = setting


def _shared_at(value: Any, path: Sequence[str]) -> tuple[int, Mapping[str, Any]] | None:
    """Where a path goes on through all values of a mapping (index of the name that is no key), and that mapping."""
    for at, name in enumerate(path):
        if isinstance(value, Mapping):
            if name not in value:
                return at, value
            value = value[name]
        elif dataclasses.is_dataclass(value) and hasattr(value, name):
            value = getattr(value, name)
        else:
            return None
    return None


def _refuse_shadowed(experiment: Any, setting: _Setting, settings: Sequence[_Setting]) -> None:
    """`policies.model=a` is unused when every policy has a `policies.NAME.model` of its own."""
    found = _shared_at(experiment, setting.path)
    if found is None:
        return
    at, mapping = found
    given = {other.path for other in settings}
    own = [(*setting.path[:at], key, *setting.path[at:]) for key in mapping]
    if own and all(path in given for path in own):
        raise UserError(f"{setting} has no effect, for {', '.join('.'.join(path) for path in own)} are all set; drop it")


def _put(owner: Any, path: tuple[str, ...], setting: _Setting, walked: tuple[str, ...]) -> Any:
    """`owner` with the value at `path` replaced."""
    name, rest = path[0], path[1:]
    if isinstance(owner, Mapping):
        return _put_in_mapping(owner, path, setting, walked)
    if isinstance(owner, tuple | list):
        return _put_in_sequence(cast("Sequence[Any]", owner), path, setting, walked)
    fields = _settable(owner)
    if not fields:
        what = f"{'.'.join(walked)} is {owner!r:.60}"
        raise UserError(f"{setting}: {what}, which has no field {name!r}")
    if name not in fields:
        raise UserError(f"{setting}: {type(owner).__name__} has no field {name!r}; {unknown(name, fields)}")
    current = getattr(owner, name)
    value = _put(current, rest, setting, (*walked, name)) if rest else _read(hints_of(type(owner))[name], current, setting)
    with _named(str(setting)):
        return dataclasses.replace(owner, **{name: value})


def _put_in_mapping(owner: Mapping[str, Any], path: tuple[str, ...], setting: _Setting, walked: tuple[str, ...]) -> Any:
    name, rest = path[0], path[1:]
    if name in owner:
        value = _put(owner[name], rest, setting, (*walked, name)) if rest else _read(type(owner[name]), owner[name], setting)
        return {**owner, name: value}
    fields = {field for value in owner.values() for field in _settable(value)}
    if name not in fields:
        place = f"{'.'.join(walked)} has" if walked else "there is"
        raise UserError(f"{setting}: {place} no {name!r}; {unknown(name, [*owner, *fields])}")
    return {key: _put(value, path, setting, (*walked, key)) for key, value in owner.items()}


def _put_in_sequence(
    owner: Sequence[Any], path: tuple[str, ...], setting: _Setting, walked: tuple[str, ...]
) -> tuple[Any, ...]:
    name, rest = path[0], path[1:]
    if not name.isdecimal() or int(name) >= len(owner) or not rest:
        what, last = ".".join(walked), len(owner) - 1
        reach = f"give {what}.N.field=value with N from 0 to {last}" if owner else f"give {what}=NAME first"
        raise UserError(f"{setting}: {what} has {len(owner)} values; {reach}")
    at = int(name)
    return (*owner[:at], _put(owner[at], rest, setting, (*walked, name)), *owner[at + 1 :])


def _settable(owner: Any) -> tuple[str, ...]:
    if not dataclasses.is_dataclass(owner) or isinstance(owner, type):
        return ()
    return tuple(field.name for field in dataclasses.fields(owner) if field.init)


def _read(hint: Any, current: Any, setting: _Setting) -> Any:
    """The text as a value of the field: by its annotation, else as the name of a plug-in."""
    try:
        return read_value(hint, setting.text, current)
    except CannotRead:
        names = short_names(hint)
    if names is None and ":" not in setting.text and not setting.text.endswith(".py"):
        raise UserError(f"{setting}: got {setting.text!r}, expected {expected(hint, current)}")
    with _named(str(setting)):
        if get_origin(hint) is Sequence and names is not None:
            return tuple(read_plug_in(get_args(hint)[0], part.strip(), names) for part in setting.text.split(","))
        return read_plug_in(hint, setting.text, names)


def read_plug_in(hint: Any, text: str, names: Mapping[str, Any] | None) -> Any:
    """The value that a short name, `module:name` or `file.py:name` stands for; a class or function is called for it."""
    found = resolve(text, table=names)
    # a class is made; tasks and the like come from functions, as experiments do
    if isinstance(found, type) or (inspect.isfunction(found) and lacking(hint, found)):
        _refuse_needy(found)
        found = found()
    missing = lacking(hint, found)
    if missing:
        raise UserError(f"got {found!r:.80}, which lacks {', '.join(missing)}; expected {expected(hint, None)}")
    return found


def _refuse_needy(made_by: Any) -> None:
    needed = [
        name
        for name, parameter in inspect.signature(made_by).parameters.items()
        if parameter.default is parameter.empty and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    if needed:
        raise UserError(
            f"{made_by.__name__} needs {', '.join(needed)} and cannot be made from its name alone; "
            "name a value of yours instead: file.py:NAME"
        )


@contextmanager
def _named(what: str) -> Generator[None]:
    """Puts `what` before the message of whatever error ends the block."""
    with capture() as caught:
        yield
    if caught.error is not None:
        said = str(caught.error) if isinstance(caught.error, UserError) else describe(caught.error)
        raise UserError(said if said.startswith(what) else f"{what}: {said}") from caught.error
