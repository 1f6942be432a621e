"""services/README.md and the lists of modules in packages are those of the code."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "services" / "execution_events"
TEXT = (ROOT / "services" / "README.md").read_text(encoding="utf-8")
PROSE = re.sub(r"^```.*?^```$", "", TEXT, flags=re.DOTALL | re.MULTILINE)

FILE_TYPES = {".json", ".md", ".py", ".sql", ".toml"}
WALKS = ("A record, from the topic to the row", "A request, from the socket to the body")
COUNTS = re.compile(r"passes (\d+) modules and (\d+) functions, (\d+) of them private")
# The names that an entry of a list is about, as in "- `direct`: …; `spooled`, `relay`: …".
ENTRY = re.compile(r"(?:^- |; )((?:`[^`]+`(?:, )?)+): ", re.MULTILINE)
WITHOUT_LIST = {"execution_events", "execution_events.cli.commands"}


def backticked(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def is_reference(text: str) -> bool:
    path, _, symbol = text.partition("::")
    return bool(re.fullmatch(r"\w[\w./-]*", path)) and (
        bool(symbol) or path.endswith("/") or Path(path).suffix in FILE_TYPES
    )


REFERENCES = sorted(filter(is_reference, set(backticked(PROSE))))


def section(title: str) -> str:
    _, heading, rest = PROSE.partition(f"\n## {title}\n")
    assert heading, title
    return rest.partition("\n## ")[0]


def located(path: str) -> Path:
    """The file or directory of a path relative to the package or to the repository."""
    found = [base / path for base in (PACKAGE, ROOT) if (base / path).exists()]
    assert found, f"{path} does not exist"
    assert found[0].is_dir() == path.endswith("/"), f"{path}: directories end with a slash"
    return found[0]


def definition(reference: str) -> ast.AST | None:
    """The node that defines `path::symbol`, a method as `Class.method`; None in a SQL file."""
    path, _, symbol = reference.partition("::")
    text = located(path).read_text(encoding="utf-8")
    if path.endswith(".sql"):
        assert re.search(rf"^-- name: {re.escape(symbol)}$", text, re.MULTILINE), reference
        return None
    node: ast.AST = ast.parse(text)
    for name in symbol.split("."):
        assert isinstance(node, ast.Module | ast.ClassDef), reference
        found = [child for child in node.body if name in defined_names(child)]
        assert found, f"{reference} does not exist"
        node = found[0]
    return node


def defined_names(node: ast.stmt) -> set[str]:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return {node.name}
        case ast.Assign():
            return {target.id for target in node.targets if isinstance(target, ast.Name)}
        case ast.AnnAssign(target=ast.Name() as target):
            return {target.id}
    return set()


def layers() -> list[set[str]]:
    """The levels of rooms in the import contract, from the top."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    [levels] = (
        contract["layers"]
        for contract in project["tool"]["importlinter"]["contracts"]
        if contract.get("containers") == ["execution_events"]
    )
    return [
        {f"{name}/" if (PACKAGE / name).is_dir() else f"{name}.py" for name in level.split(" | ")}
        for level in levels
    ]


def rooms() -> list[tuple[str, list[str]]]:
    """The rows of the table of rooms: the room, and those named as the next level."""
    rows = re.findall(r"^\| `([^`]+)` \| [^|]+ \|([^|]*)\|$", section("Rooms"), flags=re.MULTILINE)
    return [(room, backticked(below)) for room, below in rows]


@pytest.mark.parametrize("reference", REFERENCES)
def test_a_path_or_symbol_of_the_document_exists(reference: str) -> None:
    if "::" in reference:
        definition(reference)
    else:
        located(reference)


def test_the_document_has_references_of_each_kind() -> None:
    kinds = {Path(reference.partition("::")[0]).suffix for reference in REFERENCES}
    assert {"", ".json", ".py", ".sql", ".toml"} <= kinds
    assert len([reference for reference in REFERENCES if "::" in reference]) > 50


@pytest.mark.parametrize("symbol", ["Nothing", "Seeder.nothing", "Seeder.advance.nothing"])
def test_a_missing_symbol_is_found_missing(symbol: str) -> None:
    with pytest.raises(AssertionError):
        definition(f"consumer/seeder.py::{symbol}")


def test_the_table_of_rooms_has_every_room_once() -> None:
    named = [room for room, _ in rooms()]
    assert sorted(named) == sorted(
        path.name + "/" * path.is_dir()
        for path in PACKAGE.iterdir()
        if not path.name.startswith(("__", "py.typed"))
    )


def test_the_table_of_rooms_states_the_import_contract() -> None:
    levels = layers()
    below = {
        room: following
        for level, following in zip(levels, [*levels[1:], set()], strict=True)
        for room in level
    }
    assert {room: set(named) for room, named in rooms()} == below
    order = [next(i for i, level in enumerate(levels) if room in level) for room, _ in rooms()]
    assert order == sorted(order)


def test_every_import_contract_is_described() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for contract in project["tool"]["importlinter"]["contracts"]:
        assert f"\n- {contract['name']}" in section("Rooms")


@pytest.mark.parametrize("walk", WALKS)
def test_the_counts_of_a_walk_are_those_of_its_steps(walk: str) -> None:
    text = section(walk)
    steps = re.findall(r"^\d+\. (.+)$", text, re.MULTILINE)
    hops = {
        reference
        for step in steps
        for reference in filter(is_reference, backticked(step))
        if isinstance(definition(reference), ast.FunctionDef | ast.AsyncFunctionDef)
    }
    modules = {hop.partition("::")[0] for hop in hops}
    private = [hop for hop in hops if re.search(r"[:.]_[^_]\w*$", hop)]
    [stated] = COUNTS.findall(text)
    assert tuple(map(int, stated)) == (len(modules), len(hops), len(private))


@pytest.mark.parametrize("walk", WALKS)
def test_the_diagram_of_a_walk_has_names_of_its_steps(walk: str) -> None:
    _, _, rest = TEXT.partition(f"\n## {walk}\n")
    drawn = set(re.findall(r"\b(?:[a-z]+(?:_[a-z]+)+|_[A-Za-z_]+)\b", rest.split("```")[1]))
    assert drawn
    assert drawn <= set(re.findall(r"\w+", " ".join(backticked(section(walk)))))


def test_ten_questions_are_answered_by_a_symbol() -> None:
    rows = re.findall(r"^\| (.+\?) \| (.+) \|$", section("Where is …?"), re.MULTILINE)
    assert len(rows) >= 10
    for question, answer in rows:
        assert any(map(is_reference, backticked(answer))), question


def package_name(directory: Path) -> str:
    return ".".join(directory.relative_to(PACKAGE.parent).parts)


def modules_of(package: Path) -> set[str]:
    """The modules and packages of a package."""
    return {path.stem for path in package.glob("*.py") if not path.name.startswith("__")} | {
        path.parent.name for path in package.glob("*/__init__.py")
    }


PACKAGES = {package_name(path.parent): path.parent for path in PACKAGE.rglob("__init__.py")}


@pytest.mark.parametrize("name", sorted(PACKAGES.keys() - WITHOUT_LIST))
def test_a_package_lists_its_modules(name: str) -> None:
    package = PACKAGES[name]
    docstring = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8")))
    entries = {entry for names in ENTRY.findall(docstring or "") for entry in backticked(names)}
    listed = {entry.removesuffix("/") for entry in entries}
    assert modules_of(package) - listed == set()
    unknown = {entry for entry in listed - modules_of(package) if not any(package.glob(entry))}
    assert unknown == set()
