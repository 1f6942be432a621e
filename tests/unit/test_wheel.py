"""The built wheel is complete, which an editable install cannot show."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "services"


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
    package = SOURCES / "execution_events"
    files = {
        path.relative_to(SOURCES).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == files
    assert {Path(name).suffix for name in files} >= {".py", ".sql", ".toml", ".properties"}
