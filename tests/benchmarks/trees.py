"""Source trees: this checkout, and another commit's that it is compared with."""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from tests.benchmarks.figures import Verdict, ratio

_Variant = TypeVar("_Variant")

OTHER_TITLE = "… of the other tree"
"""The title of a row below that of the same variant of this tree."""


@dataclass(frozen=True)
class Tree:
    """A checkout and the interpreter of the environment in which it is installed.

    Trees share commands and modules that are run, but no imports: names inside may differ.
    """

    root: Path
    python: str

    @classmethod
    def at(cls, root: Path) -> Self:
        """Return the checkout in `root`; raise `ValueError` if it has no .venv."""
        python = root.absolute() / ".venv" / "bin" / "python"
        if not python.exists():
            raise ValueError(f"{root} is not a checkout with a .venv; run `make install` in it")
        return cls(root.absolute(), str(python))

    @property
    def command(self) -> tuple[str, ...]:
        """The command `execution-events`."""
        return (self.python, "-m", "execution_events.cli")


THIS = Tree(Path(__file__).parents[2], sys.executable)

COST_BAR = 1.05
"""Ratio of a time or of memory to the other tree's."""


def paired(
    variants: Iterable[_Variant], twin: Callable[[_Variant], _Variant | None]
) -> list[_Variant]:
    """Return the variants, each followed by its twin of the other tree if it has one.

    Neighbours alternate in rounds `in_turn`: A B, B A, A B.
    """
    return [each for variant in variants for each in (variant, twin(variant)) if each is not None]


def in_turn(variants: Sequence[_Variant], number: int) -> Sequence[_Variant]:
    """Return the variants in the order of a round; every other round runs backwards.

    Drift of the machine then favours neither of a pair.
    """
    return variants[:: -1 if number % 2 else 1]


def verdict(
    title: str,
    figures: Sequence[float],
    references: Sequence[float],
    bar: float,
    at_most: bool = False,
) -> Verdict:
    """Judge the figures of a variant by those of its twin; the title states the rounds' spread."""
    spread = ratio(figures, references)
    rounds = f"rounds {spread.least:.2f} to {spread.greatest:.2f}"
    return Verdict(f"{title}, of the other tree ({rounds})", spread.median, bar, at_most=at_most)
