"""Arguments that several commands take, and how they are read."""

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mllm.commands.shared import HelpFormatter, add_overrides
from mllm.errors import UserError
from mllm.settings import Settings, command_of, expanded, expanded_path, load_settings, read_yaml

if TYPE_CHECKING:
    from mllm.inference.confidence import Confidence
    from mllm.model.interface import VisionLanguageModel
    from mllm.processor import Processor

logger = logging.getLogger(__name__)

S = TypeVar("S", bound=Settings)
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
A_DUAL_ENCODER = (
    "A directory or hub id of a dual encoder of transformers or open_clip, or a directory of a run that trained one."
)
A_MODEL = "A model directory, a run directory with final/ in it, or a LLaVA directory or hub id"


def describe(
    parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], None], text: str, *examples: str
) -> None:
    """Let `parser` call `run`, and its help open with `text` and end with `examples`."""
    parser.description = text
    parser.epilog = "\n".join(("examples:" if len(examples) > 1 else "example:", *(f"  {one}" for one in examples)))
    parser.formatter_class = HelpFormatter
    parser.add_argument(
        "--verbose", action="store_true", help="Show the log lines of libraries, too, as MLLM_VERBOSE=1 does."
    )
    parser.set_defaults(run=run)


def add_parts(parser: argparse.ArgumentParser, dest: str, text: str, example: str) -> Any:
    """Let `parser` have subcommands, to be added by `add_part`; the one that is asked for will be `dest`."""
    parser.description = text
    parser.epilog = f"example:\n  {example}"
    return parser.add_subparsers(dest=dest, metavar="COMMAND", required=True, title="commands")


def add_part(
    parts: Any, name: str, run: Callable[[argparse.Namespace], None], text: str, *examples: str
) -> argparse.ArgumentParser:
    """A subcommand of `add_parts`, as `describe` makes it; its group lists it by the first sentence of `text`."""
    parser: argparse.ArgumentParser = parts.add_parser(name, help=text.partition(". ")[0].rstrip(".") + ".")
    describe(parser, run, text, *examples)
    return parser


def add_config(parser: argparse.ArgumentParser) -> None:
    """A config as CONFIG or `--config CONFIG`, which `one_of` reads, and `--set`."""
    add_one(parser, "config", "A YAML file of settings.")
    add_overrides(parser)


def read_config(options: argparse.Namespace, kind: type[S], usage: str) -> S:
    """The settings of class `kind` in the config that the options name.

    Raises UserError when there is none, or it is for another command.
    """
    config = one_of(options, "config")
    if config is None:
        raise UserError(f"give a config: {usage}")
    command = command_of(read_yaml(config))
    if command is not None and not usage.startswith(command):
        raise UserError(f"{config} is for another command: {command} {config}")
    return load_settings(kind, config, options.overrides)


def add_one(parser: argparse.ArgumentParser, name: str, text: str) -> None:
    """An argument that is given in its place or as `--NAME`; `one_of` reads it."""
    metavar = name.upper()
    parser.add_argument(name, nargs="?", type=expanded, metavar=metavar, help=text)
    parser.add_argument(
        f"--{name}", dest=f"{name}_option", type=expanded, metavar=metavar, help=f"The same as {metavar}, as an option."
    )


def one_of(options: argparse.Namespace, name: str) -> str | None:
    """What was given in its place or as `--NAME`, if anything. Raises UserError when both were."""
    given = [text for text in (getattr(options, name), getattr(options, f"{name}_option")) if text is not None]
    if len(given) > 1:
        raise UserError(f"give {name.upper()} once: found {given[0]} and --{name} {given[1]}")
    return given[0] if given else None


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which model, and how it is loaded; `load_model` reads them."""
    parser.add_argument("model", type=expanded, help=f"{A_MODEL}.")
    parser.add_argument("--quantize", choices=["4bit", "8bit"], help="Quantize the language model by bitsandbytes.")
    add_dtype(parser)
    parser.add_argument(
        "--device", help="Where the model runs, such as cpu or cuda:0. A GPU if there is one, by default."
    )
    parser.add_argument(
        "--prompt-format", help="The prompt format, for a model that doesn't say which it was trained with."
    )
    parser.add_argument(
        "--box-format",
        help="How the model writes places in images, such as qwen_vl, for one that doesn't say it (default: as saved).",
    )


def add_confidence(parser: argparse.ArgumentParser, told: str) -> None:
    """Which calibration says how sure answers are, and how sure they have to be; told: where that is seen, as a sentence."""
    parser.add_argument(
        "--calibration",
        type=expanded_path,
        metavar="FILE",
        help="What `mllm calibrate MODEL --benchmarks` wrote for this model, by which answers have a confidence. "
        "calibration.json beside the model by default, if it is there.",
    )
    parser.add_argument(
        "--min-confidence",
        type=float,
        metavar="P",
        help=f"Abstain from answers whose confidence, from 0 to 1, is below this; {told}. By default none is kept back.",
    )


def add_abstaining(parser: argparse.ArgumentParser, told: str) -> None:
    """`add_confidence`, and what is said instead of an answer; `load_confidence` reads them."""
    add_confidence(parser, told)
    parser.add_argument(
        "--abstention",
        default="I don't know.",
        metavar="TEXT",
        help="What is said instead of an answer that isn't sure enough (default: %(default)s).",
    )


def load_confidence(options: argparse.Namespace) -> "Confidence | None":
    """How sure answers of the model are, as far as something was fitted for it."""
    from mllm.inference.confidence import open_confidence

    found = open_confidence(options.model, options.calibration, options.min_confidence, options.abstention)
    if found is not None and options.quantize:
        logger.warning("the calibration was fitted without --quantize; confidences may be off")
    return found


def add_dtype(parser: "argparse._ActionsContainer") -> None:
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="auto",
        help="Data type of the weights; auto is bfloat16 on a GPU that has it, float32 elsewhere (default: %(default)s).",
    )


def load_model(options: argparse.Namespace) -> "tuple[VisionLanguageModel, Processor]":
    import torch

    from mllm.checkpoint.load import load

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return load(
        options.model,
        options.prompt_format,
        box_format=options.box_format,
        dtype=options.dtype,
        device=device,
        quantize=options.quantize,
    )


def at_least_1(text: str) -> int:
    """Parse a positive whole number; argparse shows the error as one line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def picture(text: str) -> Path:
    """Parse the path of a picture to write; argparse shows the error for a kind that isn't drawn as one line."""
    path = expanded_path(text)
    if path.suffix.lower() not in PICTURES:
        raise argparse.ArgumentTypeError(f"{text!r}: pictures are written as {', '.join(PICTURES)}")
    return path
