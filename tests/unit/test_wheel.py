"""The built wheel is complete, which an editable install cannot show."""

import subprocess
import sys
import zipfile
from pathlib import Path

from execution_events.reader.app import read_contract

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "services"
CONTRACT = "execution_events/reader/openapi.json"
"""The document that `read_contract` reads from an installed wheel."""


def test_the_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    build = ["-m", "uv", "build", "--wheel", "--no-build-isolation"]
    subprocess.run(
        [sys.executable, *build, "--python", sys.executable, "--out-dir", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        contract = archive.read(CONTRACT)
    assert contract == (ROOT / "schemas" / "openapi.json").read_bytes() == read_contract()
    package = SOURCES / "execution_events"
    files = {
        path.relative_to(SOURCES).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert CONTRACT not in files
    assert packed == {*files, CONTRACT}
    assert {Path(name).suffix for name in files} >= {".py", ".sql", ".toml", ".properties"}
