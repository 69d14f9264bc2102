"""A frozen reference policy: how likely it holds the tokens that another policy drew, the anchor of a KL term."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from agentrl.engines.contract import check_ids
from agentrl.learning.forward import open_forward
from agentrl.learning.packing import Plan
from agentrl.learning.vocabulary import check_same_vocabulary
from agentrl.transformer.foreign import read_config
from agentrl.transformer.weights import load_weights


class Reference:
    """The policy of the folder, beside a learner of the model `model`, whose vocabulary it must have (`UserError`).

    `weights` are those of the folder if they are at hand: a learner of adapters holds those of its base.
    """

    def __init__(self, folder: Path, model: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        check_same_vocabulary(model, folder)
        self._folder, self._config = folder, read_config(folder)
        self._forward = open_forward(self._config)
        self._weights = load_weights(folder) if weights is None else weights

    def logprobs(self, layout: Plan) -> Tensor:
        """Of each entry of a step, (N,) float64 without gradient, at the temperature at which its token was drawn."""
        for ids in (layout.entries.target, *(microbatch.ids for microbatch in layout.microbatches)):
            check_ids(ids.astype(np.int32), self._config.vocab_size, f"reference {self._folder}")
        with torch.no_grad():
            scored = [self._forward.score(self._weights, microbatch) for microbatch in layout.microbatches]
        return torch.cat(scored).double()[torch.from_numpy(layout.scored)]
