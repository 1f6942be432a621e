"""Bilingual texts: `<zh>##<en>`."""

from typing import Literal

Lang = Literal["both", "zh", "en"]
"""The half of reason and message to show."""


def half(bilingual: str, lang: Lang) -> str:
    """`lang`'s part of `<zh>##<en>`, spaces trimmed, the whole where there is no `##`.

    As `first_half` and `second_half` in the database.
    """
    if lang == "both":
        return bilingual
    first, found, second = bilingual.partition("##")
    return (second if found and lang == "en" else first).strip(" ")
