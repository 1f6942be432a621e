"""The style check: refuses the texts and names that the project does not use.

    python -m tests.prose [PATH ...]

Without a path it reads services/, tests/, and the documents. The rules:

- `docstring`: no docstring begins with a question word.
- `comment`: no comment begins with one either.
- `text`: no retired sentence or phrase in a string, a comment or a document.
- `name`: no retired name of a class, a function, a parameter, a variable or an attribute.
- `event`: the event of a log call is a constant in snake_case.
- `field`: a log call has the text of an exception in the field `error`.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]

QUESTION_WORDS = frozenset({"what", "who", "whoever", "whether", "how", "where"})

SENTENCES = (
    "Who watches an execution misses nothing and is told nothing twice",
    "counts them after all, or closes them",
    "that nothing has changed for long",
    "the most of one token, or of one subject of a JWT",
    "its port; 0 for any",
    "a request has no body here",
    "Whoever takes one has to ask whether its revisions are still the current ones",
    "Have those go that have waited for a first look",
)
PHRASES = (
    "is away",
    "are away",
    "double occurrences",
    "reading on",
    "of no more use",
    "what there is",
    "begins anew",
    "goes on with",
)
"""Words in a way that only a translation uses them; refused as whole words."""
WHOLE_STRINGS = frozenset({"do it"})
"""Refused only as the whole of a string: the help of an option."""

NAMES = frozenset(
    {"Asked", "Step", "Lists", "place", "Move", "Kept", "Reach"}
    | {"_book", "_COMPANY", "_AWAY", "_Lane", "Background", "Names"}
    | {"asked", "Place", "places", "lane", "lanes", "Said", "said", "_AttributeNames", "_Whole"}
)
METHODS = frozenset({"keep"})
"""Refused only as the name of a method."""

_LOG_METHODS = frozenset({"debug", "info", "warning", "error", "exception"})
_EVENT = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_ERROR_NAMES = frozenset({"error", "exc", "exception", "failure"})

# They hold what they refuse.
_EXEMPT = frozenset({"tests/prose.py", "tests/unit/test_prose.py"})

_Function = ast.FunctionDef | ast.AsyncFunctionDef


class Finding(NamedTuple):
    """A breach of one rule in one line."""

    line: int
    rule: str
    text: str


def python_findings(source: str) -> list[Finding]:
    """Return the findings in a Python module, in the order of lines."""
    tree = ast.parse(source)
    found = [
        *_docstrings(tree),
        *_strings(tree),
        *_comments(source),
        *_names(tree),
        *_log_calls(tree),
    ]
    return sorted(set(found))


def document_findings(text: str) -> list[Finding]:
    """Return the retired sentences and phrases in a document."""
    return list(_sentences(text, 1))


def _sentences(text: str, line: int) -> Iterator[Finding]:
    """Yield the retired sentences of a text that begins in `line`, over its line breaks."""
    for sentence in (*SENTENCES, *PHRASES):
        pattern = r"\b" + r"\s+".join(map(re.escape, sentence.split())) + r"\b"
        for match in re.finditer(pattern, text, re.IGNORECASE):
            number = line + text.count("\n", 0, match.start())
            yield Finding(number, "text", f'"{sentence}" is retired')


def _docstrings(tree: ast.Module) -> Iterator[Finding]:
    for node in ast.walk(tree):
        match node:
            # Also the string below an attribute.
            case ast.Expr(value=ast.Constant(value=str(text))):
                if (first := _question_word(text)) is not None:
                    yield Finding(node.lineno, "docstring", f'a docstring begins with "{first}"')


def _strings(tree: ast.Module) -> Iterator[Finding]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from _sentences(node.value, node.lineno)
            if node.value in WHOLE_STRINGS:
                yield Finding(node.lineno, "text", f'"{node.value}" is retired')


def _comments(source: str) -> Iterator[Finding]:
    for begin, text in _comment_blocks(source):
        yield from _sentences(text, begin)
        first = _question_word(text)
        if first is not None:
            yield Finding(begin, "comment", f'a comment begins with "{first}"')


def _comment_blocks(source: str) -> Iterator[tuple[int, str]]:
    """Yield the first line and the text of neighbouring comments, which are read as one."""
    block: list[str] = []
    begin = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        if token.start[0] != begin + len(block):
            yield begin, "\n".join(block)
            block, begin = [], token.start[0]
        block.append(token.string.lstrip("# "))
    yield begin, "\n".join(block)


def _question_word(text: str) -> str | None:
    """Return the first word of `text` if it is a question word."""
    first = re.search(r"\w+", text)
    return first[0] if first is not None and first[0].lower() in QUESTION_WORDS else None


def _names(tree: ast.Module) -> Iterator[Finding]:
    for node in ast.walk(tree):
        for name in _defined(node):
            if name in NAMES:
                yield Finding(getattr(node, "lineno", 1), "name", f"`{name}` is retired")
        if isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, _Function) and method.name in METHODS:
                    yield Finding(method.lineno, "name", f"`{method.name}()` is retired")


def _defined(node: ast.AST) -> Iterator[str]:
    """Yield the names that a node gives to something."""
    match node:
        case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
            yield node.name
        case ast.arg():
            yield node.arg
        case ast.Name(ctx=ast.Store()):
            yield node.id
        case ast.Attribute(ctx=ast.Store()):
            yield node.attr
        case ast.alias(asname=str(name)):
            yield name


def _log_calls(tree: ast.Module) -> Iterator[Finding]:
    loggers = _loggers(tree)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in _LOG_METHODS
            and _identifier(node.func.value) in loggers
        ):
            yield from _event(node)
            yield from _fields(node)


def _loggers(tree: ast.Module) -> set[str]:
    """Return the names in a module that are bound to a `Logger`."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case (
                ast.Assign(targets=[target], value=ast.Call(func=called))
                | ast.AnnAssign(target=target, value=ast.Call(func=called))
            ):
                name = _identifier(target)
                if name is not None and _identifier(called) == "Logger":
                    found.add(name)
    return found


def _identifier(node: ast.expr) -> str | None:
    match node:
        case ast.Name():
            return node.id
        case ast.Attribute():
            return node.attr
    return None


def _event(call: ast.Call) -> Iterator[Finding]:
    """Check the event of a log call; one in a variable is checked where it is a constant."""
    events = [call.args[0]] if call.args else []
    while events:
        event = events.pop()
        match event:
            case ast.IfExp():
                events += [event.body, event.orelse]
            case ast.Constant(value=str(text)) if not _EVENT.fullmatch(text):
                yield Finding(event.lineno, "event", f'the event "{text}" is not in snake_case')
            case ast.JoinedStr() | ast.BinOp() | ast.Call():
                yield Finding(event.lineno, "event", "an event is a constant; the rest is fields")


def _fields(call: ast.Call) -> Iterator[Finding]:
    for field in call.keywords:
        if field.arg == "why" or (field.arg == "reason" and _is_error(field.value)):
            name = field.arg
            yield Finding(field.value.lineno, "field", f"`error` is the field, not `{name}`")


def _is_error(value: ast.expr) -> bool:
    return any(
        isinstance(node, ast.Name) and (node.id in _ERROR_NAMES or node.id.endswith("_error"))
        for node in ast.walk(value)
    )


def files() -> Iterator[Path]:
    """Yield every file that the check reads."""
    for directory in ("services", "tests"):
        yield from (ROOT / directory).rglob("*.py")
        yield from (ROOT / directory).rglob("*.md")
    for directory in ("infra", "schemas", ".github"):
        yield from (ROOT / directory).rglob("*.md")
    yield from ROOT.glob("*.md")


def check(paths: Iterable[Path]) -> list[str]:
    """Return a line for each finding in the files and in the directories' files."""
    lines = []
    for path in sorted({found for each in paths for found in _expanded(each)}):
        name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)
        if name in _EXEMPT:
            continue
        text = path.read_text(encoding="utf-8")
        found = python_findings(text) if path.suffix == ".py" else document_findings(text)
        lines += [f"{name}:{each.line}: {each.rule}: {each.text}" for each in found]
    return lines


def _expanded(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from (each for each in path.rglob("*") if each.suffix in {".py", ".md"})
    else:
        yield path


def main(arguments: list[str]) -> int:
    """Print the findings; return 1 where there are any."""
    lines = check([Path(each).absolute() for each in arguments] or files())
    for line in lines:
        print(line)
    if lines:
        print(f"{len(lines)} findings", file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
