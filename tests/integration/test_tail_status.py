"""`tail --exit-status` decides in a shell script."""

import asyncio
import shlex
from pathlib import Path

import pytest

from execution_events.events import Occurrence
from tests.support.consumers import DEADLINE, until
from tests.support.processes import COMMAND, run_cli
from tests.support.readers import Reader, named
from tests.support.records import Log

START, DONE = "启动##ActionStart", "执行成功##SuccessfulFinish"
FAILED, TIMED_OUT = "失败##ActionFailed", "超时##ActionTimeout"

SCRIPT = """\
{tail} "$1" --reader "$2" --exit-status --until-settled 5s --quiet-after 8s {more}> "$3" 2>&1
case $? in
    0) echo succeeded ;;
    3) echo failed ;;
    4) echo silent ;;
    *) echo undecided: $? ;;
esac
"""


CASES = [
    ([(START, "a"), (DONE, "a")], [], "", "succeeded"),
    ([(START, "a")], [(DONE, "a")], "", "succeeded"),
    ([(START, "a"), (FAILED, "a"), (START, "a"), (DONE, "a")], [], "", "succeeded"),
    ([(START, "a"), (FAILED, "a"), (START, "b"), (DONE, "b")], [], "", "failed"),
    ([(START, "a"), (DONE, "a")], [(START, "b"), (TIMED_OUT, "b")], "", "failed"),
    ([(START, "a"), (FAILED, "a")], [(START, "b"), (DONE, "b")], "", "failed"),
    ([(START, "a")], [], "", "silent"),
    ([], [], "", "silent"),
    # A filter of events does not hide the success after the failure; one of elements does.
    ([(START, "a"), (FAILED, "a"), (START, "a")], [(DONE, "a")], "--reason X ", "succeeded"),
    ([(START, "a"), (FAILED, "a"), (DONE, "b")], [], "--elem-id b ", "succeeded"),
    ([(START, "a"), (FAILED, "a"), (START, "b")], [], "--timeout 3s ", "failed"),
    ([(START, "a"), (DONE, "b")], [], "--timeout 3s ", "undecided: 1"),
]
"""Events before the script has shown the list, events after it, options, and the script's word."""


async def test_a_script_decides(reader: Reader, written: Log, tmp_path: Path) -> None:
    lock = asyncio.Lock()

    async def decided(
        number: int, before: list[tuple[str, str]], after: list[tuple[str, str]], more: str
    ) -> tuple[str, str]:
        execution_id, shown = f"execution-{number}", tmp_path / str(number)
        events = [
            named(str(second), second, reason=reason, elem_id=element, execution_id=execution_id)
            for second, (reason, element) in enumerate([*before, *after])
        ]

        async def add(*added: Occurrence) -> None:
            async with lock:
                await written.add(*added)

        if before:
            await add(*events[: len(before)])
        text = SCRIPT.format(tail=shlex.join([*COMMAND, "tail"]), more=more)
        process = await asyncio.create_subprocess_exec(
            *("sh", "-c", text, "sh", execution_id, str(reader.api.base_url), str(shown)),
            stdout=asyncio.subprocess.PIPE,
        )

        async def listed() -> bool:
            return shown.exists() and "now:" in shown.read_text()

        await until(listed, "the list is shown")
        for event in events[len(before) :]:
            await add(event)
        async with asyncio.timeout(DEADLINE):
            out, _ = await process.communicate()
        return out.decode().strip(), shown.read_text()

    results = await asyncio.gather(
        *(decided(number, *case[:3]) for number, case in enumerate(CASES))
    )
    for (word, shown), case in zip(results, CASES, strict=True):
        assert word == case[3], (case, shown)


async def test_exit_status_needs_an_end() -> None:
    assert await run_cli("tail", "execution-1", "--exit-status", code=2) == ""


@pytest.mark.parametrize(
    ("output", "error"), [("/dev/full", "No space left on device"), ("&-", "Bad file descriptor")]
)
async def test_output_that_cannot_be_written_ends_it(
    reader: Reader, written: Log, output: str, error: str
) -> None:
    await written.add(named("event", 1))
    text = f'{shlex.join(COMMAND)} tail execution-1 --reader "$1" >{output}'
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", text, "sh", str(reader.api.base_url)), stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(DEADLINE):
        _, shown = await process.communicate()
    assert process.returncode == 1
    last = shown.decode().splitlines()[-1]
    assert last == f"execution-events: cannot write to standard output: {error}"
