"""From text to the value it names: one resolver for whatever a person may name on a command line.

    file.py:name            a name in a file; the file is imported as `python file.py` would see its neighbours
    package.module:name     a name in an installed module
    gigpo                   a short name: of a table of ours, or of an entry point of an installed package

Every failure is a `UserError` that says what was wrong, what there is and what comes near.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from agentrl.errors import UserError, capture, describe

SHARED_ACRONYMS: Mapping[str, tuple[str, ...]] = {
    "arpo": (
        "arpo_agentic (Agentic Reinforced Policy Optimization, arXiv 2507.19849)",
        "arpo_gui (Agentic Replay Policy Optimization, arXiv 2505.16282)",
    ),
    "dppo": (
        "dppo_preference (Direct Preference-based Policy Optimization, arXiv 2301.12842)",
        "dppo_diffusion (Diffusion Policy Policy Optimization, arXiv 2409.00588)",
    ),
    "gepo": (
        "gepo_equivalent (Group Equivalent Preference Optimization, arXiv 2505.12723)",
        "gepo_expectation (Group Expectation Policy Optimization, arXiv 2508.17850)",
    ),
    "gtpo": (
        "gtpo_turn (Group Turn Policy Optimization, arXiv 2511.14846)",
        "gtpo_token (Group Token Policy Optimization, arXiv 2508.04349)",
    ),
    "hrpo": (
        "hrpo_mashost (MasHost's Hierarchical Relative Policy Optimization, arXiv 2506.08507)",
        "hrpo_latent (Hybrid Reasoning Policy Optimization, arXiv 2505.18454)",
    ),
    "mpo": (
        "mpo_meta (Meta Policy Optimization, arXiv 2504.20157)",
        "mpo_mixed (Mixed Preference Optimization, arXiv 2411.10442)",
    ),
    "spo": (
        "spo_segment (Segment Policy Optimization, arXiv 2505.23564)",
        "spo_single_stream (Single-stream Policy Optimization, arXiv 2509.13232)",
    ),
    "srpo": (
        "srpo_self_referential (Self-Referential Policy Optimization, for vision-language-action models)",
        "srpo_resampling (two-Staged history-Resampling Policy Optimization, arXiv 2504.14286)",
    ),
}
"""Acronyms that several papers share. A bare one is refused with the full names."""


def resolve(text: str, *, group: str | None = None, table: Mapping[str, Any] | None = None) -> Any:
    """The value that `text` names; short names are looked up in `table`, then among the entry points of `group`."""
    place, colon, name = text.strip().rpartition(":")
    if colon:
        if not place or not name:
            raise UserError(f"{text!r} names nothing; write `file.py:name` or `package.module:name`")
        module = load_file(Path(place)) if place.endswith(".py") else _load_module(place)
        return _attribute(module, name, place)
    if text.strip().endswith(".py"):
        module = load_file(Path(text.strip()))
        raise UserError(f"{text!r} is a file; say which name in it: {_listing(_public(module), prefix=text.strip() + ':')}")
    return _short_name(text.strip(), group, {} if table is None else table, methods=table is not None)


class Offered(Mapping[str, Any]):
    """What installed packages offer as entry points of a group, by short name; loaded when it is asked for."""

    def __init__(self, group: str) -> None:
        self._group = group

    def __getitem__(self, name: str) -> Any:
        return resolve(name, group=self._group)

    def __contains__(self, name: object) -> bool:
        return name in importlib.metadata.entry_points(group=self._group).names

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(importlib.metadata.entry_points(group=self._group).names))

    def __len__(self) -> int:
        return len(importlib.metadata.entry_points(group=self._group).names)


def near(name: str, names: Iterable[str]) -> list[str]:
    """Up to three names that look like `name`, whatever their case."""
    by_lower = {known.lower(): known for known in names}
    return [by_lower[found] for found in difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)]


def unknown(name: str, names: Iterable[str]) -> str:
    """The second half of a message: what comes near `name`, and all there is."""
    known = sorted(names)
    close = near(name, known)
    meant = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{meant}there is {_listing(known)}"


def load_file(path: Path) -> types.ModuleType:
    """Imports a Python file once, under a name that is the same in every process (`module_name`)."""
    file = path.expanduser().resolve()
    if not file.is_file():
        folder = file.parent
        others = [other.name for other in folder.glob("*.py")] if folder.is_dir() else []
        hint = f"; {unknown(file.name, others)} in {folder}" if others else ""
        raise UserError(f"there is no file {path}{hint}")
    for module in list(sys.modules.values()):
        if module.__name__ != "__main__" and _file_of(module) == file:
            return module
    name, root = module_name(file)
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    if "." in name:
        return _guarded(lambda: importlib.import_module(name), file)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module, loader = importlib.util.module_from_spec(spec), spec.loader
    sys.modules[name] = module

    def execute() -> types.ModuleType:
        loader.exec_module(module)
        return module

    try:
        return _guarded(execute, file)
    except UserError:
        del sys.modules[name]
        raise


def module_name(file: Path) -> tuple[str, Path]:
    """The name under which a file is imported, and the folder that must be on the path.

    In a package (folders with `__init__.py`) it is the dotted name; else the file's own name, as a neighbour would import
    it, with a digest of the path behind it if that is the name of a module that is something else.
    """
    root, parts = file.parent, [file.stem]
    while (root / "__init__.py").is_file():
        parts.insert(0, root.name)
        root = root.parent
    if len(parts) > 1:
        return ".".join(parts), root
    taken = sys.modules.get(file.stem)
    if file.stem in sys.stdlib_module_names or (taken is not None and _file_of(taken) != file) or not file.stem.isidentifier():
        digest = hashlib.blake2b(str(file).encode(), digest_size=4).hexdigest()
        return f"{''.join(sign if sign.isalnum() else '_' for sign in file.stem)}_{digest}", root
    return file.stem, root


def name_of(value: Any) -> str:
    """`module:qualname` of a class or function. What was defined in a script that runs is named as if it were imported."""
    module = str(value.__module__)
    main = sys.modules["__main__"]
    file = _file_of(main) if module == "__main__" else None
    if file is not None:
        module = module_name(file)[0]
    return f"{module}:{value.__qualname__}"


def _file_of(module: types.ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if isinstance(file, str) else None


def _guarded(load: Any, file: Path) -> types.ModuleType:
    """Runs the import of a user's file; what it raises leaves as one line with the place."""
    with capture() as caught:
        return load()
    error = caught.error
    assert error is not None
    line = error.lineno if isinstance(error, SyntaxError) else _line_in(error, file)
    where = f"{file}:{line}" if line else str(file)
    raise UserError(f"{where} cannot be imported: {describe(error)}") from error


def _line_in(error: BaseException, file: Path) -> int | None:
    """The line of `file` from which an error came."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename).resolve() == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _load_module(name: str) -> types.ModuleType:
    with capture() as caught:
        return importlib.import_module(name)
    error = caught.error
    if isinstance(error, ModuleNotFoundError) and error.name and (name == error.name or name.startswith(error.name + ".")):
        hint = " (a file is written with its .py: `file.py:name`)" if "/" in name or Path(f"{name}.py").is_file() else ""
        raise UserError(f"there is no module {error.name!r} for {name!r}{hint}; install it, or give `file.py:name`") from error
    assert error is not None
    raise UserError(f"module {name} cannot be imported: {describe(error)}") from error


def _attribute(module: types.ModuleType, name: str, place: str) -> Any:
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            names = _public(module) if value is module else [found for found in dir(value) if not found.startswith("_")]
            raise UserError(f"{place} has no {part!r}; {unknown(part, names)}")
        value = getattr(value, part)
    return value


def _public(module: types.ModuleType) -> list[str]:
    """What a module defines itself; else what it shows."""
    shown = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    own = [name for name, value in shown.items() if getattr(value, "__module__", None) == module.__name__]
    return own or [name for name, value in shown.items() if not isinstance(value, types.ModuleType)]


def _short_name(name: str, group: str | None, table: Mapping[str, Any], *, methods: bool) -> Any:
    if name in table:
        return table[name]
    offered = {point.name: point for point in importlib.metadata.entry_points(group=group)} if group else {}
    if name in offered:
        with capture() as caught:
            return offered[name].load()
        raise UserError(f"{name!r} ({offered[name].value}) cannot be imported: {describe(caught.error or ImportError())}")
    if methods and name.lower() in SHARED_ACRONYMS:
        raise UserError(f"{name!r} is the name of several methods; say which: {' or '.join(SHARED_ACRONYMS[name.lower()])}")
    known = [*table, *offered]
    where = f" among the entry points of {group!r}" if group and not table else ""
    raise UserError(f"there is no {name!r}{where}; {unknown(name, known)}, or `file.py:name`, or `package.module:name`")


def _listing(names: Iterable[str], prefix: str = "") -> str:
    found = [f"{prefix}{name}" for name in names]
    if not found:
        return "nothing"
    return ", ".join(found[:24]) + (f" and {len(found) - 24} more" if len(found) > 24 else "")
