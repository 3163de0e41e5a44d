"""Results of conformance as a table for the terminal, and as the page of the documentation."""

from collections.abc import Sequence
from typing import Any

import torch
import transformers

from mllm.conformance.checks import CHECKS, TOLERANCE
from mllm.conformance.trying import Conformance

COMMAND = "mllm conformance --all --markdown > docs/conformance.md"


def table(results: Sequence[Conformance]) -> Any:
    """A `rich` table: a row for each model, its figures, or the reason that it has none."""
    from rich.table import Table

    shown = Table("family", "conforms", *(check.title for check in CHECKS.values()))
    for result in results:
        if result.figures:
            shown.add_row(result.family, _state(result), *(_figure(result, check) for check in CHECKS))
        else:
            shown.add_row(result.family, _state(result))
    return shown


def reasons(results: Sequence[Conformance]) -> list[str]:
    """A line for each model that has no figures."""
    return [f"{own.family}: {own.refused or own.failed}" for own in results if not own.figures]


def count_line(results: Sequence[Conformance]) -> str:
    """How many conform, how many are refused, and how many do neither."""
    green = sum(own.conforms for own in results)
    refused = sum(own.refused is not None for own in results)
    return f"{green} conform, {refused} are refused, {len(results) - green - refused} neither, of {len(results)}"


def _state(result: Conformance) -> str:
    return "refused" if result.refused else "yes" if result.conforms else "no"


def _figure(result: Conformance, check: str) -> str:
    figure = result.figures[check]
    return f"{figure:.0f}" if CHECKS[check].is_count or not figure else f"{figure:.0e}"


def page(results: Sequence[Conformance]) -> str:
    """The page of all families, in Markdown."""
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}, float32 on a CPU"
    figures = [own for own in results if own.figures]
    titles = [check.title for check in CHECKS.values()]
    lines = [
        "# Conformance",
        f"<!-- Written by `{COMMAND}`: edit the code it comes from. -->",
        "Each family that transformers opens by `AutoModelForImageTextToText`: its own classes, made tiny, with random "
        "weights. What is computed of packed rows here is held against what transformers alone computes of each "
        "conversation, by its own processor, positions and masks, with nothing packed. The tokenizers are bytes, and one "
        "chat template serves all, which writes an image as the family does; a checkpoint's own is checked when it opens.",
        f"**{count_line(results)}** ({versions}).",
        f"What conforms differs from transformers by at most {TOLERANCE:g}, and counts 0 wrong.",
        "To try a family, or a checkpoint of yours:",
        "```console\nmllm conformance llava\n```",
        "## What is compared",
        "\n".join(f"- **{check.title}**: {check.says}." for check in CHECKS.values()),
        "## Families",
        _markdown(["family", "conforms", *titles], [_row(own) for own in figures]),
        "## Refused",
        "For reasons that are seen in the model, its processor or what is installed here, never by its name.",
        _markdown(["family", "why"], [[own.family, own.refused] for own in results if own.refused]),
    ]
    failed = [[own.family, own.failed] for own in results if own.failed]
    if failed:
        lines += [
            "## Not tried",
            "No tiny model of these was made, or it failed by itself: nothing is said of them.",
            _markdown(["family", "what happened"], failed),
        ]
    return "\n\n".join(lines) + "\n"


def _row(result: Conformance) -> list[Any]:
    return [result.family, _state(result), *(_figure(result, check) for check in CHECKS)]


def _markdown(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(titles), ["---"] * len(titles), *cells])
