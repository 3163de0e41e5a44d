"""Cleaning the titles and keywords that people gave to images, and the named reasons for refusing one."""

import html
import re

_AUTHOR_PREFIX = re.compile(r"^clipart by [\w ]+ - ", re.IGNORECASE)
_CAMEL_CASE = re.compile(r"(?<=[a-z])(?=[A-Z][a-z])")
_TRAILING_NUMBER = re.compile(r"[\s_#-]*\d+$")
_ID = re.compile(r"^(?:[a-z]{0,3}[\s_#-]*)?\d[\d\s_.#-]*$|^[0-9a-f]{8,}$", re.IGNORECASE)


def clean_title(title: str) -> str:
    """Lower-case words: entities decoded, author's prefix, underscores, CamelCase and a trailing number removed."""
    text = _AUTHOR_PREFIX.sub("", html.unescape(title).strip())
    text = _CAMEL_CASE.sub(" ", text.replace("_", " "))
    text = " ".join(text.split())
    if not _ID.match(text):
        text = _TRAILING_NUMBER.sub("", text) or text
    return text.lower().rstrip(".")


def clean_keywords(keywords: list[str], title: str) -> tuple[str, ...]:
    """Plain lower-case keywords that say something the title doesn't, without names of authors and doubles."""
    kept: list[str] = []
    for keyword in keywords:
        text = " ".join(re.split(r"[_\s]+", html.unescape(keyword).strip().lower()))
        is_plain = re.fullmatch(r"[a-z]{3,}(?: [a-z]+)?", text) and "francesco" not in text
        if is_plain and text not in kept and text not in title:
            kept.append(text)
    return tuple(kept)


def refusal(title: str, max_characters: int, pictures_with_title: int, max_pictures_per_title: int) -> str | None:
    """Why a cleaned title can't name its picture, or None: the name of the filter, as counted in the report."""
    if not title:
        return "empty_title"
    if len(title) > max_characters:
        return "title_too_long"
    if _ID.match(title):
        return "title_is_an_id"
    # An album's name given to each of its pictures says nothing about any one of them.
    return "title_shared_by_many" if pictures_with_title > max_pictures_per_title else None
