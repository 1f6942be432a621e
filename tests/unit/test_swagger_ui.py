"""The reference page: its files are those that it names, and it has no other host."""

import gzip
import hashlib
import re
from pathlib import Path

import execution_events.reader

DIRECTORY = Path(execution_events.reader.__file__).parent / "swagger_ui"
README = (DIRECTORY / "README.md").read_text()
HASHES = dict(re.findall(r"^\| `(.+)` \| ([0-9a-f]{64}) \|$", README, re.MULTILINE))
OURS = {"index.html", "reference.js", "README.md"}
LICENCES = {"LICENSE", "NOTICE", "swagger-ui-bundle.js.LICENSE.txt"}


def test_each_file_of_another_author_has_its_hash_and_a_licence() -> None:
    files = {path.name for path in DIRECTORY.iterdir()}
    assert files == OURS | LICENCES | {f"{name}.gz" for name in HASHES}
    assert len(HASHES) == 2
    for name, expected in HASHES.items():
        content = gzip.decompress((DIRECTORY / f"{name}.gz").read_bytes())
        assert hashlib.sha256(content).hexdigest() == expected
    assert "Apache License" in (DIRECTORY / "LICENSE").read_text()


def test_the_page_names_no_other_host_and_no_inline_code() -> None:
    page = (DIRECTORY / "index.html").read_text()
    for name in ("index.html", "reference.js"):
        assert "//" not in re.sub(r"^// .*$", "", (DIRECTORY / name).read_text(), flags=re.M)
    assert re.findall(r"<script(?! src=)", page) == []
    assert "<style" not in page
    assert " style=" not in page
    assert re.findall(r'(?:src|href)="([^"]+)"', page) == [
        "data:,",
        "docs/swagger-ui.css",
        "openapi.json",
        "docs/swagger-ui-bundle.js",
        "docs/reference.js",
    ]
