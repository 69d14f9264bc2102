"""What a batch's groups come to before anything learns: values, credit, the rows of every learner, and the record of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agentrl.credit.assign import assign
from agentrl.credit.batch import to_batch
from agentrl.credit.contract import Batch, Credit
from agentrl.credit.values import CRITIC, VALUES, value_based, with_values
from agentrl.episode import Group
from agentrl.experiment import Experiment
from agentrl.learning.contract import Learner, Row
from agentrl.learning.critic import Valuer, critic_rows
from agentrl.learning.replay import to_stored
from agentrl.learning.rows import to_rows
from agentrl.store.contract import StoredStep


@dataclass(frozen=True, slots=True)
class Prepared:
    """Rows by learner, the values that their credit is from, and the estimator's metrics."""

    rows: Mapping[str, Sequence[Row]]
    values: Sequence[Row]
    metrics: Mapping[str, float]

    def stored(self, step: int, learners: Mapping[str, Learner], state: Any) -> list[StoredStep]:
        """The record from which every learner can make its step again, and credit can be computed again."""
        steps = [
            StoredStep(name, step, to_stored(self.rows[name]), learner.version, dict(self.metrics), state)
            for name, learner in learners.items()
        ]
        if self.values:
            steps.append(StoredStep(VALUES, step, to_stored(self.values), learners[CRITIC].version))
        return steps


def prepare(experiment: Experiment[Any, Any], groups: Sequence[Group], learners: Mapping[str, Learner]) -> Prepared:
    """Values under the critic as it is now, if there is one; credit; rows. `UserError` as `assign` raises it."""
    critic = learners.get(CRITIC)
    estimator = value_based(experiment.credit)
    if not isinstance(critic, Valuer) or estimator is None:
        batch, credit = _assign(experiment, groups)
        return Prepared({name: to_rows(batch, credit, name) for name in learners}, (), credit.metrics)
    # credit looks at episodes that are too long to be trained, as well
    whole = to_batch(groups, policies=_learning(experiment), train_overlong=True)
    values = critic.values(critic_rows(whole, np.zeros(len(whole.turns)), critic.sees), estimator.over)
    columns = {(row.episode.id, each.turn.id): each.advantage for row in values for each in row.trained}
    batch, credit = _assign(experiment, with_values(groups, columns))
    rows = {name: to_rows(batch, credit, name) for name in learners if name != CRITIC}
    rows[CRITIC] = critic_rows(batch, estimator.returns(batch), critic.sees) if len(batch.turns) else []
    return Prepared(rows, values, credit.metrics)


def _assign(experiment: Experiment[Any, Any], groups: Sequence[Group]) -> tuple[Batch, Credit]:
    return assign(
        groups,
        experiment.credit,
        experiment.transforms,
        min_group=experiment.min_group,
        train_overlong=experiment.train_overlong,
        policies=_learning(experiment),
    )


def _learning(experiment: Experiment[Any, Any]) -> set[str]:
    """Names of the policies that learn."""
    return {policy.name for policy in experiment.by_name.values() if not policy.frozen}
