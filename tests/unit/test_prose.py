"""The style check refuses what its rules say, and nothing else."""

from pathlib import Path

import pytest

from tests import prose

LOGGER = "from execution_events.logs import Logger\n_log = Logger(__name__)\n"


def rules(source: str) -> list[str]:
    """The rules that a module breaks."""
    return [found.rule for found in prose.python_findings(source)]


@pytest.mark.parametrize("word", ["What", "Who", "Whoever", "Whether", "How", "Where", "what"])
@pytest.mark.parametrize(
    "source",
    ["{}", "class A:\n    {}", "def f():\n    {}", "A = 1\n{}"],
    ids=["module", "class", "function", "attribute"],
)
def test_a_docstring_does_not_begin_with_a_question_word(word: str, source: str) -> None:
    assert rules(source.format(f'"""{word} is."""')) == ["docstring"]


@pytest.mark.parametrize("text", ["Whatever is.", "However.", "Return what it is.", "", "«»"])
def test_another_docstring_passes(text: str) -> None:
    assert rules(f'def f():\n    """{text}"""') == []


@pytest.mark.parametrize("word", ["What", "Who", "where"])
def test_a_comment_does_not_begin_with_a_question_word(word: str) -> None:
    assert rules(f"A = 1\n# {word} is.\n# And more.") == ["comment"]
    assert rules(f"A = 1  # {word} is.") == ["comment"]
    assert rules(f"# More on\n# {word.lower()} is.") == []


@pytest.mark.parametrize("text", ["threading on", "what thereis", "This is awayward."])
def test_a_phrase_is_refused_only_as_whole_words(text: str) -> None:
    assert rules(f"# {text}".replace("# what", "# So what")) == []


@pytest.mark.parametrize("sentence", [*prose.SENTENCES, *prose.PHRASES])
def test_a_retired_sentence_is_refused_in_strings_comments_and_documents(sentence: str) -> None:
    first, _, rest = sentence.partition(" ")
    assert rules(f'help = "{sentence}"') == ["text"]
    assert rules(f'help = (\n    "so: {first} "\n    "{rest}."\n)') == ["text"]
    assert rules(f'raise ValueError(f"{{1}} {sentence}")') == ["text"]
    assert rules(f"# So {first}\n# {rest}.\nA = 1") == ["text"]
    assert rules(f'def f():\n    """Return.\n\n    {first}\n    {rest}.\n    """') == ["text"]
    [found] = prose.document_findings(f"# Title\n\nSo {first}\n{rest}.\n")
    assert (found.line, found.rule) == (3, "text")


def test_a_short_text_is_refused_only_alone() -> None:
    assert rules('add_argument("--yes", help="do it")') == ["text"]
    assert rules('add_argument("--yes", help="do it again")') == []


@pytest.mark.parametrize("name", sorted(prose.NAMES))
def test_a_retired_name_is_refused_wherever_it_is_given(name: str) -> None:
    for source in (
        f"class {name}: ...",
        f"def {name}(): ...",
        f"async def {name}(): ...",
        f"def f({name}): ...",
        f"def f(*, {name}=1): ...",
        f"lambda {name}: 1",
        f"{name} = 1",
        f"{name}: int = 1",
        f"for {name} in (): ...",
        f"self.{name} = 1",
        f"import other as {name}",
    ):
        assert rules(source) == ["name"], source
    assert rules(f"{name.lower()}s_of = {name}") == []


def test_keep_is_refused_as_a_method_alone() -> None:
    assert rules("class A:\n    async def keep(self): ...") == ["name"]
    assert rules("def keep(): ...\nkeep = 1") == []


@pytest.mark.parametrize("event", ["batch stored", "Batch", "batch-stored", "batch_", "", "1st"])
@pytest.mark.parametrize("method", ["debug", "info", "warning", "error", "exception"])
def test_a_log_event_is_an_identifier(event: str, method: str) -> None:
    assert rules(f'{LOGGER}_log.{method}("{event}", records=3)') == ["event"]


@pytest.mark.parametrize(
    "event", ['f"batch_{n}"', '"batch " + name', '"batch_{}".format(n)', '"a b" if x else "c"']
)
def test_a_log_event_is_a_constant(event: str) -> None:
    assert rules(f"{LOGGER}_log.info({event})") == ["event"]


@pytest.mark.parametrize(
    "source",
    [
        '_log.info("batch_stored", records=3)',
        '_log.info("stored" if done else "left")',
        "_log.info(event)",
        'other.info("not a logger of ours")',
        'other.error("a b", why="c")',
    ],
)
def test_another_log_call_passes(source: str) -> None:
    assert rules(LOGGER + source) == []


def test_a_logger_of_any_name_is_known() -> None:
    assert rules('logger = Logger("a")\nlogger.info("a b")') == ["event"]
    assert rules('self._log: Logger = Logger("a")\nself._log.info("a b")') == ["event"]


@pytest.mark.parametrize(
    ("field", "refused"),
    [
        ("why=text", True),
        ("why=str(error)", True),
        ("reason=str(error)", True),
        ("reason=str(error) or 'timeout'", True),
        ("reason=type(first_error).__name__", True),
        ("reason=event.reason", False),
        ("error=str(error)", False),
    ],
)
def test_the_text_of_an_exception_is_the_field_error(field: str, refused: bool) -> None:
    assert rules(f'{LOGGER}_log.info("stopped", {field})') == ["field"] * refused


def test_a_finding_names_file_line_and_rule(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "module.py").write_text('"""A module."""\n\nplace = 1\n')
    (tmp_path / "text.md").write_text("Executions that nothing has\nchanged for long.\n")
    assert prose.main([str(tmp_path)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}/module.py:3: name: `place` is retired",
        f'{tmp_path}/text.md:1: text: "that nothing has changed for long" is retired',
    ]
    (tmp_path / "module.py").unlink()
    (tmp_path / "text.md").unlink()
    assert prose.main([str(tmp_path)]) == 0


def test_it_reads_the_product_the_tests_and_the_documents() -> None:
    names = {path.relative_to(prose.ROOT).as_posix() for path in prose.files()}
    assert names >= {
        "README.md",
        "infra/README.md",
        "schemas/README.md",
        "services/execution_events/settings/groups.py",
        "tests/benchmarks/RESULTS.md",
        "tests/unit/test_prose.py",
    }
