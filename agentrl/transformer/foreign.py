"""Any causal language model that transformers has: read, built, and saved by transformers.

For architectures that `agentrl.transformer` does not compute itself. Weights stay a dict of float32 tensors, by the names of
the module's parameters. Needs the extra `transformers`, which is imported when a folder needs it.
"""

from __future__ import annotations

import importlib.util
import inspect
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from agentrl.errors import UserError
from agentrl.transformer.config import ModelConfig, Unsupported, read_ids

NO_LIMIT = 4096
"""Context of an architecture that names none (ALiBi, for one)."""


@dataclass(frozen=True)
class Foreign:
    """A model folder of an architecture that is run by transformers. `eos_ids` are the model's own end tokens."""

    folder: Path
    architecture: str
    vocab_size: int
    max_positions: int
    eos_ids: tuple[int, ...]
    config: Any = field(repr=False, compare=False)

    @classmethod
    def from_folder(cls, path: str | Path) -> Foreign:
        """Reads the folder's config; `UserError` says why it is no causal language model that can be run here."""
        from transformers import AutoConfig, GenerationConfig
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        folder, where = Path(path), f"model folder {str(path)!r}"
        try:
            config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
        except (ValueError, OSError, KeyError) as error:
            raise UserError(
                f"{where} cannot be read by transformers ({_line(error)}); save the model with a known model_type"
            ) from error
        names: list[str] = list(config.architectures or [])
        architecture = names[0] if names else "(none)"
        if config.is_encoder_decoder:
            raise UserError(f"{where}: {architecture} is an encoder-decoder; agents need a decoder-only causal language model")
        if architecture not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
            raise UserError(f"{where}: {architecture} is no causal language model of transformers; give one (...ForCausalLM)")
        if getattr(config, "quantization_config", None):
            raise UserError(f"{where}: quantised weights are not supported; save the model in float32 or bfloat16")
        text = config.get_text_config()
        limit = getattr(text, "max_position_embeddings", None) or NO_LIMIT
        ends = read_ids(text.eos_token_id)
        if (folder / "generation_config.json").is_file():
            ends += read_ids(GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id)
        return cls(folder, architecture, text.vocab_size, limit, tuple(dict.fromkeys(ends)), config)

    def build(self, weights: Mapping[str, Tensor] | None = None) -> nn.Module:
        """The module, for inference mode; with `weights` (not copied), else with whatever values."""
        from transformers import AutoModelForCausalLM

        module: nn.Module = AutoModelForCausalLM.from_config(self.config, dtype=torch.float32).eval()
        accepted = inspect.signature(module.forward).parameters
        if "past_key_values" not in accepted or "use_cache" not in accepted:
            raise UserError(f"{self.folder}: {self.architecture} keeps no keys and values; agents need a causal transformer")
        if weights is not None:
            put(module, weights)
        return module

    def load(self) -> dict[str, Tensor]:
        """All parameters in float32; tied ones once, under their first name."""
        from transformers import AutoModelForCausalLM

        with _quiet():
            try:
                module = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32, local_files_only=True)
            except (OSError, ValueError, RuntimeError) as error:
                what = f"the weights in {self.folder} cannot be read by transformers ({_line(error)})"
                raise UserError(f"{what}; save the model again") from error
        return {name: tensor.detach() for name, tensor in module.named_parameters()}

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """`config.json` and safetensors, as transformers writes them."""
        with _quiet():
            self.build(weights).save_pretrained(folder)  # pyright: ignore[reportCallIssue]
        (folder / "model.safetensors").chmod(0o644)

    @cached_property
    def empty(self) -> nn.Module:
        """The module without values."""
        with torch.device("meta"):
            return self.build()

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every parameter, tied ones once."""
        return {name: tuple(tensor.shape) for name, tensor in self.empty.named_parameters()}

    @cached_property
    def apart(self) -> tuple[str, ...]:
        """Parameters that are no matrix of a linear layer inside the model: embeddings and the output too."""
        linear = {f"{name}.weight" for name, module in self.empty.named_modules() if _is_linear(module)}
        output = self.empty.get_output_embeddings()  # pyright: ignore[reportCallIssue]
        ends = {name for name, tensor in self.empty.named_parameters() if output is not None and tensor is output.weight}
        return tuple(name for name in self.shapes if name not in linear or name in ends)

    @cached_property
    def transposed(self) -> bool:
        """Whether matrices are kept as [in, out], as GPT-2 does."""
        return any(type(module).__name__ == "Conv1D" for module in self.empty.modules())


def read_config(folder: str | Path) -> ModelConfig | Foreign:
    """What a folder holds: a model that is computed here, or one that transformers runs. `UserError` if neither can."""
    try:
        return ModelConfig.from_folder(folder)
    except Unsupported as error:
        if importlib.util.find_spec("transformers") is None:
            raise UserError(f'{error}; or pip install "agentrl-runtime[transformers]", which runs it, slowly') from error
        return Foreign.from_folder(folder)


def put(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Has the module compute with these tensors themselves."""
    for name, parameter in module.named_parameters():
        parameter.data = weights[name]
        parameter.requires_grad_(False)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _line(error: BaseException) -> str:
    text = str(error).strip().split("\n", 1)[0]
    return text if len(text) <= 200 else text[:197] + "..."


@contextmanager
def _quiet() -> Generator[None]:
    """Without transformers' progress bars and its warnings about how it saves."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if shown:
            logging.enable_progress_bar()
