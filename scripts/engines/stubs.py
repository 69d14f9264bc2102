"""Stand-ins for three packages that SGLang imports at the top and that a CPU server of a text model never calls; and memory
that is not pinned, in the place of the pinned memory that its LoRA layers ask for, of which such a machine has none.

torchvision comes with every model's config, sgl_kernel and triton hold GPU kernels. scripts/engines.sh puts this file into
the environment of SGLang, with a .pth line that imports it when Python starts, so that spawned processes have it too. It is
asked last: a package that is installed wins. Whoever only looks whether a package is there (`importlib.util.find_spec`, as
transformers does) is told that it is not; whoever imports it gets a module whose every attribute exists: a class by a
capital letter, a value that triton gives at import time, else another module. A kernel decorated by one is left as it is.
Calling anything else raises.
"""

from __future__ import annotations

import functools
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

NAMES = ("torchvision", "sgl_kernel", "triton")


class Config:
    """triton.Config: kernels list them when they are defined."""

    def __init__(self, kwargs: Any = None, **more: Any) -> None:
        self.kwargs = kwargs or {}
        self.__dict__.update(more)


VALUES = {
    "triton.Config": Config,
    "triton.cdiv": lambda a, b: -(-a // b),
    "triton.next_power_of_2": lambda n: 1 << max(0, n - 1).bit_length(),
}


class Members(type):
    """A stand-in class: its members are their own names."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class StandIn(ModuleType):
    """See the module."""

    __file__ = __file__
    __version__ = "0"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        whole = f"{self.__name__}.{name}"
        if whole in VALUES:
            value = VALUES[whole]
        elif name[0].isupper():
            value = Members(name, (), {"__module__": self.__name__})
        else:
            value = sys.modules.get(whole) or StandIn(whole)
        setattr(self, name, value)
        return value

    def __call__(self, *args: Any, **options: Any) -> Any:
        """As a decorator, with or without arguments; nothing else."""
        if len(args) == 1 and callable(args[0]) and not options:
            return args[0]
        if self.__name__.startswith("triton"):
            return lambda kernel: kernel
        raise RuntimeError(f"{self.__name__} was called, but this environment has only a stand-in for it; install the package")


class StandIns(MetaPathFinder, Loader):
    """Finds stand-ins, for imports only."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] not in NAMES or _is_asked():
            return None
        return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


class Unpinned(MetaPathFinder):
    """Acts when the LoRA layers are imported, for torch is there by then; finds nothing itself."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "sglang.srt.lora.layers":
            import torch

            for maker in ("tensor", "empty", "zeros", "ones", "arange", "full"):
                setattr(torch, maker, _unpinned(getattr(torch, maker)))
            torch.Tensor.pin_memory = lambda self, *_: self  # type: ignore[method-assign]


def _unpinned(make: Any) -> Any:
    @functools.wraps(make)
    def plain(*args: Any, **options: Any) -> Any:
        options.pop("pin_memory", None)
        return make(*args, **options)

    return plain


def _is_asked() -> bool:
    """Whether `importlib.util.find_spec` looks, and not an import."""
    caller = sys._getframe(3)
    return caller.f_code.co_name == "find_spec" and caller.f_globals.get("__name__") == "importlib.util"


sys.meta_path.insert(0, Unpinned())
sys.meta_path.append(StandIns())
