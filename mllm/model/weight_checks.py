"""Whether the safetensors files of a directory can be the weights of the model that its config describes."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from mllm.errors import UserError
from mllm.model.stored_weights import StoredWeights

LONGEST_REASON = 200  # characters; transformers lists every model type that it knows


def check_described(path: str | Path, config: PreTrainedConfig, build: Callable[[], nn.Module]) -> None:
    """Raise UserError where the files hold fewer numbers than the model of `config` has, before memory is taken for it.

    A config that lacks a part is filled with defaults by transformers, which are those of a large model. build: makes the
    model; it is called on torch's meta device. What isn't a directory (a hub id) and quantized weights aren't looked at.
    """
    if not Path(path).is_dir() or getattr(config, "quantization_config", None) is not None:
        return
    try:
        with torch.device("meta"), no_init_weights():
            model = build()
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError, ZeroDivisionError) as error:
        raise UserError(f"{path}: no model can be built by its config: {first_line(error)}") from None
    if isinstance(model, PreTrainedModel):
        model.tie_weights()
    wanted, held = sum(parameter.numel() for parameter in model.parameters()), stored_numbers(Path(path))
    if held is not None and held < wanted:
        raise UserError(
            f"{path}: its config.json describes a model of {wanted:,} parameters, and its files hold {held:,}: "
            "one of them isn't whole; get the directory again"
        )


def check_complete(path: str | Path, missing: Iterable[str]) -> None:
    """Raise UserError where weights are missing, which transformers would make up at random."""
    names = sorted(missing)
    if names:
        raise UserError(f"{path}: {len(names)} weight(s) missing, such as {names[0]}; weights and config.json differ")


def stored_numbers(directory: Path) -> int | None:
    """How many numbers the safetensors files of a directory hold, by their headers alone; None where it has no such file."""
    files = sorted(directory.glob("*.safetensors"))
    return sum(shape.numel() for shape in StoredWeights(files).shapes.values()) if files else None


def first_line(error: Exception) -> str:
    """What an error of transformers says, in a line that isn't too long."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if len(line) <= LONGEST_REASON else line[:LONGEST_REASON] + " …"
