"""Whether a number that is measured at every step grows: the slope of a line through it, and how well that is known."""

from __future__ import annotations

import math
from collections.abc import Iterable


class Trend:
    """A line through points by least squares, kept as sums: O(1) a point.

    `error` is the slope's standard error if the points lie about the line independently; points that drift together make it
    too small.
    """

    def __init__(self, points: Iterable[tuple[float, float]] = ()) -> None:
        self._count = 0
        self._x = self._y = self._xx = self._xy = self._yy = 0.0  # means, then sums of squares about them (Welford)
        for x, y in points:
            self.add(x, y)

    def add(self, x: float, y: float) -> None:
        """Another point; one that is not finite is left out."""
        if not (math.isfinite(x) and math.isfinite(y)):
            return
        self._count += 1
        dx, dy = x - self._x, y - self._y
        self._x += dx / self._count
        self._y += dy / self._count
        self._xx += dx * (x - self._x)
        self._xy += dx * (y - self._y)
        self._yy += dy * (y - self._y)

    @property
    def known(self) -> bool:
        """A slope with an error needs three points, at two or more places."""
        return self._count > 2 and self._xx > 0

    @property
    def slope(self) -> float:
        """Change of y for 1 of x."""
        return self._xy / self._xx

    @property
    def error(self) -> float:
        """Standard error of the slope."""
        left = max(0.0, self._yy - self._xy * self.slope)
        return math.sqrt(left / (self._count - 2) / self._xx)

    @property
    def flat(self) -> bool:
        """Whether the slope is within two standard errors of 0."""
        return abs(self.slope) <= 2 * self.error or self.slope == 0
