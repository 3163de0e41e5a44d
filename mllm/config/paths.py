"""Paths as people write them: `~` and `$VARIABLE` stand for what a shell makes of them, wherever a path is read."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from mllm.errors import UserError

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|([A-Za-z_]\w*))")


def expanded(text: str) -> str:
    """`text` with a home directory for a leading `~` or `~NAME` and values for `$VARIABLE` and `${VARIABLE}`.

    A URL stays as it is. Raises UserError for a variable that isn't set and a home that isn't there: left as they are, they
    would become the name of a folder.
    """
    if "://" in text:
        return text
    unset = next((found for found in _VARIABLE.finditer(text) if (found[1] or found[2]) not in os.environ), None)
    if unset is not None:
        raise UserError(f"path {text}: the environment variable {unset[1] or unset[2]} is not set")
    path = os.path.expanduser(_VARIABLE.sub(lambda found: os.environ[found[1] or found[2]], text))
    if path.startswith("~"):
        raise UserError(f"path {text}: there is no such home directory; write ./{path} for a file of that name")
    return path


def expanded_path(text: str) -> Path:
    """`expanded`, for arguments that are read as paths."""
    return Path(expanded(text))


def expanded_benchmark(name: str) -> str:
    """Of the name of a benchmark: `FILE.jsonl:METRIC` and the source of `NAME@SOURCE` may be paths."""
    return "@".join(map(expanded, name.split("@")))


def _of_settings(text: str, expand: Callable[[str], str] = expanded) -> str:
    try:
        return expand(text)
    except UserError as error:
        raise ValueError(str(error)) from None


PathText = Annotated[str, AfterValidator(lambda text: _of_settings(text))]
BenchmarkName = Annotated[str, AfterValidator(lambda name: _of_settings(name, expanded_benchmark))]
ExpandedPath = Annotated[Path, AfterValidator(lambda path: Path(_of_settings(str(path))))]
