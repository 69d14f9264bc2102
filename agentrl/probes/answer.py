"""How likely the policy finds the right answer, before each of its turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agentrl.episode import Episode, FloatArray
from agentrl.errors import UserError
from agentrl.probes.contract import Question
from agentrl.rendering.contract import Renderer


@dataclass(frozen=True, slots=True)
class AnswerProbe:
    """exp(mean log-prob) of the right answer's tokens behind what stood before a turn and `lead`: IGPO (arXiv 2510.14967).

    `answer` gives the right answer of a task, or several that are as good: each is asked for. `lead` is the authors' text for
    models that think between tags; give what comes before an answer in your own format.
    """

    answer: Callable[[Any], str | Sequence[str]]
    lead: str = "\nNow there's enough information to answer</think><answer>"
    name: str = "answer"

    def __call__(self, task: Any, episode: Episode, renderers: Mapping[str, Renderer]) -> Iterator[Question]:
        """One question for each trained turn and answer."""
        said = self.answer(task)
        answers = [text for text in ([said] if isinstance(said, str) else said) if text]
        if not answers:
            raise UserError(f"AnswerProbe needs the right answer of task {task!r:.80}, got {said!r:.80}; mend `answer`")
        for turn in episode.turns:
            if turn.trainable:
                renderer, path = renderers[turn.policy], episode.path(turn)
                before = np.concatenate((path[: len(path) - len(turn.sampled_ids)], renderer.encode(self.lead)))
                for text in answers:
                    yield Question(turn, np.concatenate((before, renderer.encode(text))), len(before))

    def value(self, logprobs: FloatArray) -> float:
        """Between 0 and 1, whatever the answer's length."""
        return float(np.exp(np.mean(logprobs, dtype=np.float64))) if len(logprobs) else 0.0
