"""SGLang's LoRA layers ask for pinned memory, of which a machine without accelerator has none: there it is plain memory."""

from __future__ import annotations

import functools
import sys
from importlib.abc import MetaPathFinder
from typing import Any

MAKERS = ("tensor", "empty", "zeros", "ones", "arange", "full")


def unpinned(make: Any) -> Any:
    @functools.wraps(make)
    def plain(*args: Any, **options: Any) -> Any:
        options.pop("pin_memory", None)
        return make(*args, **options)

    return plain


class BeforeLayers(MetaPathFinder):
    """Acts when the layers are imported, for torch is there by then; finds nothing itself."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "sglang.srt.lora.layers":
            import torch

            for maker in MAKERS:
                setattr(torch, maker, unpinned(getattr(torch, maker)))
            torch.Tensor.pin_memory = lambda self, *_: self


sys.meta_path.insert(0, BeforeLayers())
