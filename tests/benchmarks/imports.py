"""Time of importing the publisher, next to the two libraries that it depends on."""

from execution_events.cli.progress import Progress
from tests.benchmarks.figures import Spread, Verdict, ratio
from tests.benchmarks.report import Report
from tests.benchmarks.worker import measured

BAR = 1.3

OURS = "from execution_events import Event, Publisher"
REFERENCE = "import aiokafka, msgspec"
_PROGRAM = """
import time
started = time.perf_counter()
{imports}
print('{{"seconds": %r}}' % (time.perf_counter() - started))
"""

COLUMNS = ("Import", "ms", "min", "max", "ratio")


async def run(rounds: int) -> Report:
    """Import both once a round, each time in a new interpreter."""
    seconds: dict[str, list[float]] = {REFERENCE: [], OURS: []}
    progress = Progress(rounds)
    # Round -1 does not count: it writes bytecode and fills the system's cache.
    for number in range(-1, rounds):
        progress.show(max(number, 0), "rounds")
        for imports, found in seconds.items():
            sample = await measured("-c", _PROGRAM.format(imports=imports))
            if number >= 0:
                found.append(sample["seconds"])
    progress.end()
    return report(seconds, rounds)


def report(seconds: dict[str, list[float]], rounds: int) -> Report:
    """Return the table of the samples."""
    rows = []
    for imports, found in seconds.items():
        spread = Spread.of(found)
        times = (f"{each * 1000:.0f}" for each in (spread.median, spread.least, spread.greatest))
        rows.append((imports, *times, f"{ratio(found, seconds[REFERENCE]).median:.2f}"))
    return Report(
        "import",
        {"rounds": rounds},
        COLUMNS,
        rows,
        [
            Verdict(
                "import time, of that of aiokafka and msgspec",
                ratio(seconds[OURS], seconds[REFERENCE]).median,
                BAR,
                at_most=True,
            )
        ],
        [f"Medians of {rounds} new interpreters each, in turn; bytecode is cached."],
        {"seconds": seconds},
    )
