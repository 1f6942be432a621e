"""`tail` in a pseudo-terminal, against the real reader."""

import asyncio
import re
import resource
import time
from pathlib import Path
from textwrap import dedent
from urllib.parse import urlsplit

import asyncpg
import pytest

from execution_events.store.write.prune import prune_executions
from tests.faults.proxy import Proxy
from tests.support.consumers import until
from tests.support.databases import Database, proxied
from tests.support.filling import fill
from tests.support.readers import Reader, at, named, reading
from tests.support.records import Log
from tests.support.tailing import tailing
from tests.support.tokens import token_file

START, DONE = "启动##ActionStart", "执行成功##SuccessfulFinish"
FAILED, RETRY = "失败##ActionFailed", "重试##ActionRetry"


async def test_the_last_events_come_first_and_then_each_change(
    reader: Reader, written: Log
) -> None:
    await written.add(
        named("s1", 1, reason=START, message="开始 ## start to Action(create).", elem_id="job-a"),
        named("s2", 2, reason=START, elem_id="元素-b", message="## start"),
        named("d1", 213.5, reason=DONE, message="完 ## done", elem_id="job-a"),
        named("r", 10, last_timestamp=at(300), count=9, reason=RETRY, elem_id="元素-b",
              type="Warning", message="## retry Action: create"),
    )  # fmt: skip
    async with tailing(reader, "--last", "3") as terminal:
        await terminal.shows("now:")
        await written.add(named("f", 400, reason=FAILED, type="Warning", elem_id="元素-b",
                                message="## failed: exit code 137"))  # fmt: skip
        await terminal.shows("failed: exit")
        await written.add(named("r", 401, count=2, reason=RETRY, type="Warning", elem_id="元素-b",
                                message="## retry Action: create"))  # fmt: skip
        await terminal.shows("(+2)")
        assert await terminal.interrupted() == 0
    assert terminal.screen == dedent("""\
        ── 2026-01-01 UTC
        00:00:02  ▶ 元素-b               ActionStart               start
        00:03:33  ✓ job-a                SuccessfulFinish   3m32s  done
        00:05:00  ▲ 元素-b               ActionRetry       ×9 since 00:00:10  retry Action: create
        ── now: 2 elements, 1 succeeded, 1 running
        00:06:40  ✗ 元素-b               ActionFailed       6m38s  failed: exit code 137
        00:06:41  ▲ 元素-b               ActionRetry       ×11 (+2)  retry Action: create
        ── now: 2 elements, 1 succeeded, 1 running
        """)


HOSTILE = "a\x1b[2J\x9b31m\u202eb\r\n\x00".replace("\x00", "") + "\u2028c\x7f\u00a0d\u3000e"
ESCAPED = r"a\x1b[2J\x9b31m\u202eb\r\n\u2028c\x7f d e"


async def test_hostile_text_is_escaped(reader: Reader, written: Log) -> None:
    await written.add(
        named("h", 1, reason=f"x##{HOSTILE}", message=f"x##{HOSTILE}", elem_id=HOSTILE)
    )
    async with tailing(reader, "--no-follow", "--lang", "en", columns=200) as terminal:
        assert await terminal.ends() == 0
    assert terminal.screen == (
        "── 2026-01-01 UTC\n"
        f"00:00:01  · {ESCAPED} {ESCAPED}         {ESCAPED}\n"
        "── now: 1 element, 1 unknown\n"
    )
    for form in ("--json", "--detailed"):
        async with tailing(reader, "--no-follow", form, columns=200) as terminal:
            assert await terminal.ends() == 0
        assert set(terminal.screen) <= set(map(chr, range(32, 127))) | set("\n──启动\xa0\u3000·")


async def test_lines_fit_a_narrow_terminal(reader: Reader, written: Log) -> None:
    await written.add(
        named("a", 1, reason=START, elem_id="a-very-long-element", message="## " + "word " * 20),
        named("b", 2, reason=START, elem_id="元素元素元素元素", message="## " + "元" * 40),
    )
    async with tailing(reader, "--no-follow", columns=44) as terminal:
        assert await terminal.ends() == 0
    assert terminal.screen == dedent("""\
        ── 2026-01-01 UTC
        00:00:01  ▶ a-very-lon… ActionSt…   word wo…
        00:00:02  ▶ 元素元素元… ActionSt…   元元元…
        ── now: 2 elements, 2 running
        """)


async def test_colors_are_shown_on_a_terminal_unless_refused(reader: Reader, written: Log) -> None:
    await written.add(named("f", 1, reason=FAILED, message="## failed", elem_id="job"))
    plain = "00:00:01  ✗ job                  ActionFailed              failed"
    colored = (
        "\033[2m00:00:01\033[0m  \033[31m✗\033[0m job                  "
        "\033[31mActionFailed     \033[0m         failed"
    )
    for arguments, env, line in (
        ((), {"NO_COLOR": ""}, colored),
        ((), {"NO_COLOR": "1"}, plain),
        ((), {"NO_COLOR": "", "TERM": "dumb"}, plain),
        (("--color", "always"), {"NO_COLOR": "1"}, colored),
        (("--color", "never"), {"NO_COLOR": ""}, plain),
    ):
        async with tailing(reader, "--no-follow", *arguments, env=env) as terminal:
            assert await terminal.ends() == 0
        assert terminal.screen.splitlines()[1] == line, (arguments, env)


async def test_a_terminal_without_utf8_gets_ascii(reader: Reader, written: Log) -> None:
    await written.add(
        named(
            "f", 1, reason=FAILED, message="## é失败", elem_id="元", last_timestamp=at(2), count=2
        )
    )
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    async with tailing(reader, "--no-follow", env=ascii_only, columns=40) as terminal:
        assert await terminal.ends() == 0
    assert terminal.screen == dedent("""\
        -- 2026-01-01 UTC
        00:00:02  x \\u5143     Actio... x2 si...
        -- now: 1 element, 1 failed
        """)
    async with tailing(reader, "--no-follow", "--json", env=ascii_only) as terminal:
        assert await terminal.ends() == 0
    assert "é失败" in terminal.screen


async def test_a_broken_connection_is_resumed(reader: Reader, written: Log) -> None:
    await written.add(named("a", 1, reason=START, message="## one"))
    port = urlsplit(str(reader.api.base_url)).port
    assert port is not None
    async with Proxy(port) as proxy, tailing(f"http://127.0.0.1:{proxy.port}") as terminal:
        await terminal.shows("now:")
        proxy.cut()
        await written.add(named("b", 2, message="## two"))
        await terminal.shows("two")
        async with proxy.refusing():
            await written.add(named("a", 4, message="## one"), named("c", 3, message="## three"))
            await terminal.shows("trying again")
        await terminal.shows("three")
        assert await terminal.interrupted() == 0
    assert terminal.screen == dedent("""\
        ── 2026-01-01 UTC
        00:00:01  ▶ job                  ActionStart               one
        ── now: 1 element, 1 running
        00:00:02  ▶ job                  ActionStart               two
        ── reader unavailable (All connection attempts failed); trying again
        ── connected to the reader
        00:00:04  ▶ job                  ActionStart       ×2 (+1)  one
        00:00:03  ▶ job                  ActionStart               three
        ── now: 1 element, 1 running
        """)


async def test_a_restarted_reader_is_found_again(database: Database, written: Log) -> None:
    await written.add(named("a", 1, message="## one"))
    async with reading(database.reader) as reader:
        port = urlsplit(str(reader.api.base_url)).port
        terminal_of = tailing(reader)
        terminal = await terminal_of.__aenter__()
        await terminal.shows("now:")
    try:
        await written.add(named("b", 2, message="## two"))
        await terminal.shows("trying again")
        async with reading(database.reader, reader_port=port):
            await terminal.shows("two")
            await written.add(named("b", 3, message="## two"))
            await terminal.shows("(+1)")
            assert await terminal.interrupted() == 0
    finally:
        await terminal_of.__aexit__(None, None, None)
    assert terminal.screen == dedent("""\
        ── 2026-01-01 UTC
        00:00:01  ▶ job                  ActionStart               one
        ── now: 1 element, 1 running
        ── reader unavailable (All connection attempts failed); trying again
        ── connected to the reader
        00:00:02  ▶ job                  ActionStart               two
        00:00:03  ▶ job                  ActionStart       ×2 (+1)  two
        ── now: 1 element, 1 running
        """)


async def refusals(reader: Reader) -> int:
    """Return the number of requests that the reader has answered with 503."""
    metrics = (await reader.management.get("/metrics")).text
    found = re.search(r'_requests_total\{status="503"\} (\d+)', metrics)
    return 0 if found is None else int(found[1])


async def test_an_outage_of_the_database_ends_nothing(database: Database, written: Log) -> None:
    """Neither settled nor quiet is concluded while the reader cannot see the database."""
    await written.add(named("a", 1, reason=DONE, message="## one"))
    async with proxied(database.reader) as (proxy, url), reading(url) as reader:
        arguments = ("--until-settled", "1s", "--quiet-after", "1s", "--exit-status")
        async with proxy.refusing(), tailing(reader) as terminal:
            await terminal.shows("reader answered 503")
        before = await refusals(reader)
        async with tailing(reader, *arguments) as terminal:
            await terminal.shows("now:")
            async with proxy.refusing():
                await written.add(named("b", 2, reason=START, message="## two", elem_id="b"))

                async def refused() -> bool:
                    return await refusals(reader) >= before + 2

                await until(refused, "the reader was asked twice")
                assert terminal.process.isalive()
            await terminal.shows("two")
            await written.add(named("b", 3, reason=FAILED, message="## two", elem_id="b"))
            assert await terminal.ends() == 3
    assert "settled: no element has run for 1s" in terminal.screen


async def test_a_prune_meanwhile_is_told(
    reader: Reader, written: Log, owner: asyncpg.Connection
) -> None:
    await written.add(named("a", 1, message="## one"), named("b", 2, message="## two"))
    async with tailing(reader) as terminal:
        await terminal.shows("now:")
        moment = await owner.fetchval("SELECT now() + interval '1 hour'")
        async for _ in prune_executions(owner, moment, dry_run=False):
            pass
        await terminal.shows("no longer there")
        await written.add(named("a", 3, message="## again"))
        await terminal.shows("again")
        assert await terminal.interrupted() == 0
    assert terminal.screen == dedent("""\
        ── 2026-01-01 UTC
        00:00:01  ▶ job                  ActionStart               one
        00:00:02  ▶ job                  ActionStart               two
        ── now: 1 element, 1 running
        ── no longer there: 2 events
        00:00:03  ▶ job                  ActionStart               again
        ── now: 1 element, 1 running
        """)


async def test_ten_thousand_events_come_first(
    reader: Reader, owner: asyncpg.Connection, written: Log
) -> None:
    await fill(owner, 10_000)
    async with tailing(reader) as terminal:
        await terminal.shows("now:")
        assert terminal.screen.count("ActionStart") == 20
        await written.add(named("new", 1, message="## new"))
        await terminal.shows("new")
    async with tailing(reader, "--all", "--no-follow") as terminal:
        assert await terminal.ends() == 0
    assert terminal.screen.count("ActionStart") == 10_001


@pytest.mark.parametrize("seconds", [4, pytest.param(30, marks=pytest.mark.more)])
async def test_a_thousand_changes_in_a_second_are_followed(
    reader: Reader, written: Log, seconds: int
) -> None:
    """At most a line a second for each event, with at most 30 % of a core."""
    await written.add(*(named(f"n{number}", message=f"## n{number}.") for number in range(10)))
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    before = children.ru_utime + children.ru_stime
    async with tailing(reader) as terminal:
        await terminal.shows("now:")
        began = time.monotonic()
        for second in range(1, 10 * seconds + 1):
            recurring = (
                named(f"n{number}", second, message=f"## n{number}.") for number in range(10)
            )
            fresh = (named(f"m{second}.{number}", second, message="## x") for number in range(90))
            await written.add(*recurring, *fresh)
            await terminal.shows("now:")
            await asyncio.sleep(max(0, began + second / 10 - time.monotonic()))
        took = time.monotonic() - began
        await terminal.shows("x\n", 900 * seconds)
        assert await terminal.interrupted() == 0
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = children.ru_utime + children.ru_stime - before
    print(f"{used:.2f} s of CPU in {took:.1f} s")
    for number in range(10):
        lines = terminal.screen.count(f" n{number}.\n")
        # The first list, one a second, and what waited at the end.
        assert 2 <= lines <= took + 3
        assert f"×{10 * seconds + 1} (+" in terminal.screen
    # Starting the interpreter takes up to 1 s of a busy machine.
    assert used <= 0.3 * took + 1


@pytest.mark.parametrize(
    ("arguments", "token", "text"),
    [
        (("--type", "a" * 257), "all", "reader answered 400: type: expected 1 to 256"),
        ((), "unknown", "reader answered 401: "),
    ],
)
async def test_a_refusal_ends_it(
    database: Database, tmp_path: Path, arguments: tuple[str, ...], token: str, text: str
) -> None:
    (tmp_path / "tokens.json").write_text(token_file({"all": ["tenant"]}))
    (tmp_path / "token").write_text(f"{token}\n")
    token_path = str(tmp_path / "token")
    async with (
        reading(database.reader, tokens_file=str(tmp_path / "tokens.json")) as reader,
        tailing(reader, "--token-file", token_path, *arguments, columns=300) as terminal,
    ):
        assert await terminal.ends() == 2
    assert terminal.screen.startswith(f"execution-events: {text}")


async def test_another_server_is_no_reader(idle: Reader) -> None:
    url = str(idle.management.base_url)
    async with tailing(url) as terminal:
        assert await terminal.ends() == 2
    assert terminal.screen.startswith("execution-events: reader answered 404")


async def test_an_unavailable_reader_fails_a_single_list() -> None:
    async with tailing("http://127.0.0.1:1", "--no-follow") as terminal:
        assert await terminal.ends() == 1
    assert terminal.screen == (
        "execution-events: reader unavailable: All connection attempts failed\n"
    )
    async with tailing("http://127.0.0.1:1", "--timeout", "2s") as terminal:
        assert await terminal.ends() == 1
    assert terminal.screen.splitlines()[-1] == "── timeout: not ended within 2s"
