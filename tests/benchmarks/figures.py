"""Figures of several runs and their bars. Pure functions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Self


@dataclass(frozen=True)
class Spread:
    """The median, minimum and maximum of some figures."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Self:
        """Return the spread of at least one figure."""
        return cls(median(figures), min(figures), max(figures))


def ratio(figures: Sequence[float], references: Sequence[float]) -> Spread:
    """Return the median of the rounds' ratios, with their minimum and maximum.

    Figures are paired by round, because the machine's speed drifts. A reference of 0, in which a
    short run has completed nothing, makes the ratio infinite.
    """
    return Spread.of(
        [
            figure / reference if reference else math.inf
            for figure, reference in zip(figures, references, strict=True)
        ]
    )


def percentile(figures: Sequence[float], percent: float) -> float:
    """Return the smallest figure that at least `percent` of the figures do not exceed."""
    ordered = sorted(figures)
    return ordered[max(0, -int(-len(ordered) * percent // 100) - 1)]


def short(figure: float) -> str:
    """Format a figure with at least three significant digits."""
    if not math.isfinite(figure):
        return str(figure)
    if figure == int(figure) or abs(figure) >= 1000:
        return f"{figure:,.0f}"
    return f"{figure:.1f}" if abs(figure) >= 100 else f"{figure:.3g}"


@dataclass(frozen=True)
class Verdict:
    """A figure and its bar: a minimum, or a maximum if `at_most`."""

    what: str
    figure: float
    bar: float
    unit: str = ""
    at_most: bool = False

    @property
    def met(self) -> bool:
        return self.figure <= self.bar if self.at_most else self.figure >= self.bar

    def __str__(self) -> str:
        relation = "at most" if self.at_most else "at least"
        unit = f" {self.unit}" if self.unit else ""
        return (
            f"{'met   ' if self.met else 'MISSED'}  {self.what}: {short(self.figure)}{unit}"
            f" ({relation} {short(self.bar)})"
        )
