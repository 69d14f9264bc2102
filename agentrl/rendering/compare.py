"""Two renderings of the same conversation compared: where they part, why, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Literal


def shared_text(left: str, right: str) -> int:
    """Length of the common beginning."""
    if right.startswith(left):
        return len(left)
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def shared_ids(left: Sequence[int], right: Sequence[int]) -> int:
    """Number of equal ids at the beginning."""
    for index, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return index
    return min(len(left), len(right))


def classify_break(path: str, fresh: str, cut: bool) -> Literal["template", "retokenised", "truncated"]:
    """Why a path is not the beginning of a fresh rendering whose ids differ.

    "retokenised": the same text, other ids; "truncated": the last sample was cut, so that it could not be read as the
    template would write it; "template": the template writes something else, such as history without its thinking.
    """
    if fresh.startswith(path):
        return "retokenised"
    return "truncated" if cut else "template"


def count_deviation(path: Sequence[int], fresh: Sequence[int]) -> int:
    """Tokens that stand in only one of the two, counted on a longest-blocks alignment (difflib's)."""
    left, right = list(path), list(fresh)
    begin = shared_ids(left, right)
    left, right = left[begin:], right[begin:]
    end = shared_ids(left[::-1], right[::-1])
    left, right = left[: len(left) - end], right[: len(right) - end]
    matcher = SequenceMatcher(None, left, right, autojunk=False)
    same = sum(block.size for block in matcher.get_matching_blocks())
    return len(left) + len(right) - 2 * same
