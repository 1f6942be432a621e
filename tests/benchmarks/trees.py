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


def paired(
    variants: Iterable[_Variant], twin: Callable[[_Variant], _Variant | None]
) -> list[_Variant]:
    """Return the variants, each followed by its twin of the other tree if it has one.

    Neighbours in a round that every other round runs backwards alternate: A B, B A, A B.
    """
    return [each for variant in variants for each in (variant, twin(variant)) if each is not None]


def verdict(title: str, rates: Sequence[float], references: Sequence[float], bar: float) -> Verdict:
    """Judge the rates of a variant by those of its twin; the title states the rounds' spread."""
    spread = ratio(rates, references)
    rounds = f"rounds {spread.least:.2f} to {spread.greatest:.2f}"
    return Verdict(f"{title}, of the other tree ({rounds})", spread.median, bar)
