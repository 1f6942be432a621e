"""The README's questions of operators, in SQL."""

import re
from pathlib import Path

_README = (Path(__file__).parents[2] / "README.md").read_text()
_SECTION = _README.partition("\n## Ask it in SQL\n")[2].partition("\n## ")[0]

_QUESTION = re.compile(r"^(\S[^\n]*):\n\n```sql\n(.*?);\n```$", re.MULTILINE | re.DOTALL)

QUESTIONS: dict[str, str] = dict(_QUESTION.findall(_SECTION))
"""SQL by the sentence before it, without the colon."""
