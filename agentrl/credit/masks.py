"""Which tokens of a turn are trained."""

from __future__ import annotations

import numpy as np

from agentrl.credit.contract import Bools
from agentrl.episode import Turn
from agentrl.errors import UserError


def over_sampled(turn: Turn, mask: Bools) -> Bools:
    """(S,) of a mask over the sampled or over the drawn tokens; forced ones are never trained. `UserError` for other shapes."""
    given, sampled = np.asarray(mask), len(turn.sampled_ids)
    if given.dtype != np.bool_ or given.shape not in ((sampled,), (sampled - turn.forced,)):
        raise UserError(
            f"a mask of turn {turn.id} has dtype {given.dtype} and shape {given.shape}, wanted bool of shape ({sampled},), "
            "one for each sampled token"
        )
    result = np.zeros(sampled, np.bool_)
    result[turn.forced :] = given[len(given) - (sampled - turn.forced) :]
    return result
