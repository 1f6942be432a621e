"""Bilingual texts, `<zh>##<en>`."""

from typing import Literal

Lang = Literal["both", "zh", "en"]
"""The half of reasons and messages to show."""


def half(bilingual: str, lang: Lang) -> str:
    """Return the `lang` half of `<zh>##<en>`, spaces trimmed; the whole text without `##`.

    Equivalent to `first_half` and `second_half` in the database.
    """
    if lang == "both":
        return bilingual
    first, separator, second = bilingual.partition("##")
    return (second if separator and lang == "en" else first).strip(" ")
