"""What a directory is, told by its small files alone."""

import json
from pathlib import Path
from typing import Any

from mllm.checkpoint.ours import model_directory
from mllm.checkpoint.parts import first_line
from mllm.errors import UserError

MODEL_TYPE = "mllm_generator"
INDEX = "model_index.json"


def config_of(directory: Path) -> dict[str, Any]:
    """Read `config.json`; an empty one where there is none that can be read."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def is_own(directory: Path) -> bool:
    """Whether a directory is a generator that this package wrote."""
    return config_of(directory).get("model_type") == MODEL_TYPE


def is_generator(path: Path | str) -> bool:
    """Whether a directory, or that of a finished run, is a generator: ours, or a pipeline of diffusers."""
    directory = model_directory(path)
    return is_own(directory) or (directory / INDEX).is_file()


def read_index(directory: Path) -> dict[str, Any]:
    """Read a pipeline's `model_index.json`. Raises UserError when it can't be read."""
    try:
        index = json.loads((directory / INDEX).read_text(encoding="utf-8"))
        return dict(index)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{directory / INDEX} can't be read: {first_line(error)}") from None
