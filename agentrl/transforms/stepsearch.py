"""StepSearch: each search is rewarded for what it found of the right documents, less what had been found before."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from agentrl.episode import FINISHED, Episode, Group, Reward, ToolCall
from agentrl.errors import UserError

GOLD = "gold_documents"
"""Field or key of a task that holds the texts of the right documents."""
DOCUMENTS = "documents"
"""Key of `ToolCall.data` that holds the texts of the documents that a search gave."""


def documents_of(call: ToolCall) -> Sequence[str]:
    """What the call's data say, else its whole output as one document."""
    if DOCUMENTS in call.data:
        return call.data[DOCUMENTS]
    return [call.output] if call.output else []


@dataclass(frozen=True, slots=True)
class StepSearch:
    """r_t = scale (G_t - P_t) on each turn that searched (Wang et al. 2025, arXiv 2505.15107), as reward "step_search".

    c_t[i] is the greatest similarity of a document of turn t to the right document i. The gain G_t is the mean over i of
    max(c_t[i] - m[i], 0), m the greatest c of the turns before; the redundancy P_t is the share of the turn's documents that a
    turn before gave as well. Without right documents a task gets nothing. The authors mean scale 0.6, and write 1.6 by an
    array they add to twice; their reward for the words of a query belongs to the experiment's own.
    """

    scale: float = 0.6
    tool: str | None = None
    documents: Callable[[ToolCall], Sequence[str]] = documents_of

    def __call__(self, group: Group) -> Group:
        """The group whose finished episodes have a reward on each turn that searched."""
        gold = _gold(group.task)
        if not gold:
            return group
        return replace(group, episodes=tuple(self._rewarded(episode, gold) for episode in group.episodes))

    def _rewarded(self, episode: Episode, gold: Sequence[str]) -> Episode:
        if episode.status not in FINISHED:
            return episode
        steps = {name: gain - redundancy for name, gain, redundancy in self.steps(episode, gold)}
        turns = tuple(
            replace(turn, rewards=(*turn.rewards, Reward("step_search", self.scale * steps[turn.id], turn=turn.id)))
            if turn.id in steps
            else turn
            for turn in episode.turns
        )
        return replace(episode, turns=turns)

    def steps(self, episode: Episode, gold: Sequence[str]) -> Iterator[tuple[str, float, float]]:
        """(turn, gain, redundancy) of each turn that got documents."""
        best = [0.0] * len(gold)
        seen = set[str]()
        for turn in episode.turns:
            calls = [call for call in turn.tool_calls if call.status == "ok" and self.tool in (None, call.name)]
            given = [document for call in calls for document in self.documents(call)]
            if not given:
                continue
            rows = [similarities(document, gold) for document in given]
            now = [max(row[i] for row in rows) for i in range(len(gold))]
            gain = math.fsum(max(c - m, 0.0) for c, m in zip(now, best, strict=True)) / len(gold)
            yield turn.id, gain, sum(document in seen for document in given) / len(given)
            best = [max(c, m) for c, m in zip(now, best, strict=True)]
            seen.update(given)


_WORD = re.compile(r"\b\w\w+\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def similarities(document: str, gold: Sequence[str]) -> list[float]:
    """Cosines of TF-IDF between a document and each of the others, fitted on all of them, as scikit-learn's default does.

    Texts are taken without case, punctuation and articles, as in the authors' code.
    """
    counts = [Counter(_words(text)) for text in (document, *gold)]
    held = Counter(word for count in counts for word in count)
    idf = {word: math.log((1 + len(counts)) / (1 + texts)) + 1 for word, texts in held.items()}
    vectors = [{word: n * idf[word] for word, n in count.items()} for count in counts]
    lengths = [math.hypot(*vector.values()) for vector in vectors]
    first = vectors[0]
    dots = [math.fsum(weight * first[word] for word, weight in vector.items() if word in first) for vector in vectors[1:]]
    return [dot / (lengths[0] * length) if dot else 0.0 for dot, length in zip(dots, lengths[1:], strict=True)]


def _words(text: str) -> list[str]:
    return [word for word in _WORD.findall(text.lower().translate(_PUNCTUATION)) if word not in ("an", "the")]


def _gold(task: Any) -> Sequence[str]:
    found = task.get(GOLD) if isinstance(task, Mapping) else getattr(task, GOLD, None)
    if found is None:
        raise UserError(
            f"StepSearch needs the right documents of a task as its {GOLD!r} (a list of texts); {task!r:.80} has none: add the "
            "field, empty for a task without right documents"
        )
    return found
