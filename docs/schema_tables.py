"""Markdown tables, and the JSON schemas of settings as such tables."""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any


def table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table; cells may hold line breaks and bars."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def code(text: str) -> str:
    """`text` in backticks, or nothing for none."""
    return f"`{text}`" if text else ""


def settings_sections(schema: dict[str, Any]) -> Iterator[str]:
    """Markdown of a JSON schema made by pydantic: a section for the top level, and one for each group in it."""
    definitions = schema.get("$defs", {})
    waiting: list[tuple[str, dict[str, Any]]] = [("", schema)]
    while waiting:
        prefix, group = waiting.pop(0)
        rows = []
        for name, field in group.get("properties", {}).items():
            inner, many = _group_of(field, definitions)
            key = f"{prefix}{name}"
            if inner is None:
                default = _default(field, name in group.get("required", ()))
                rows.append((code(key), _type(field), default, field.get("description", "")))
                continue
            waiting.append((f"{key}[]." if many else f"{key}.", inner))
            link = f"see [`{key}`](#{anchor_of(key)})"
            rows.append((code(key), "list of groups" if many else "group", link, _first(field, inner)))
        title = f"## `{prefix.rstrip('.').removesuffix('[]')}`\n\n" if prefix else "## Top level\n\n"
        lead = f"{' '.join(group['description'].split())}\n\n" if group.get("description") else ""
        yield title + lead + table(("key", "type", "default", "meaning"), rows)


def _first(field: dict[str, Any], inner: dict[str, Any]) -> str:
    """The field's own description, or the first sentence of its group's."""
    own = field.get("description") or inner.get("description", "")
    return re.split(r"(?<=[.!?])\s", " ".join(own.split()))[0]


def anchor_of(heading: str) -> str:
    """What GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _group_of(field: dict[str, Any], definitions: dict[str, Any]) -> tuple[dict[str, Any] | None, bool]:
    """The group of settings that a field holds, and whether it holds a list of them."""
    for option in field.get("anyOf") or field.get("allOf") or [field]:
        many = option.get("type") == "array"
        reference = (option.get("items", {}) if many else option).get("$ref", "")
        inner = definitions.get(reference.rpartition("/")[2])
        if inner and "properties" in inner:
            return inner, many
    return None, False


def _type(field: dict[str, Any]) -> str:
    options = [_plain_type(option) for option in field.get("anyOf", [field])]
    return ", or ".join(dict.fromkeys(option for option in options if option))


def _plain_type(option: dict[str, Any]) -> str:
    if "enum" in option or "const" in option:
        return ", ".join(code(str(choice)) for choice in option.get("enum", [option.get("const")]))
    names = {"number": "number", "integer": "whole number", "boolean": "`true`, `false`", "string": "text"}
    kind = option.get("type", "")
    if kind == "array":
        inner: dict[str, Any] = option.get("items") or next(iter(option.get("prefixItems", [])), {})
        return f"list of {_plain_type(inner) or 'values'}"
    if kind == "object":
        return "mapping"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = " and ".join(f"{sign} {option[key]:g}" for key, sign in signs.items() if key in option)
    return " ".join(filter(None, (names.get(kind, "`null`" if kind == "null" else kind), bounds)))


def _default(field: dict[str, Any], required: bool) -> str:
    if required:
        return "required"
    return code(json.dumps(field["default"], ensure_ascii=False)) if "default" in field else ""
