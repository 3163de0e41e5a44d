"""The `mllm` command: a table of names. Only the module of the subcommand that is asked for is imported."""

import argparse
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import NamedTuple, NoReturn

import mllm
from mllm.commands import shared

USAGE = "mllm [-h] [--version] COMMAND ..."
END = "`mllm COMMAND --help` explains a command.\n\nexample:\n  mllm chat runs/demo/stage2 --image cat.png"


class Command(NamedTuple):
    group: str  # none: it works and is not listed
    module: str
    summary: str


COMMANDS = {
    "train": Command("train", "train", "Align a projector or tune a model on instructions, as a config says."),
    "improve": Command("train", "improve", "Let a model learn from its own answers, verified, in rounds."),
    "plan": Command("train", "plan", "Say what runs will take: tokens, memory and hours, computed or measured."),
    "estimate": Command("", "estimate", "Do what `mllm plan --measure` does."),
    "schema": Command("train", "schema", "Print the JSON schema of a kind of config file, for editors."),
    "data": Command("data", "data", "Show, validate, convert or survey training data, and lay out images."),
    "synth": Command("data", "synth", "Make training data from captions, boxes and text."),
    "chat": Command("talk", "chat", "Talk to a model in the terminal."),
    "serve": Command("talk", "serve", "Serve a model by OpenAI's API, with a page to chat on."),
    "eval": Command("score", "eval", "Score a model on benchmarks, beside its blind controls."),
    "compare": Command("score", "compare", "Compare two evaluations question by question."),
    "calibrate": Command("score", "calibrate", "Say how well a model's probabilities tell right answers from wrong."),
    "score": Command("score", "score", "Score a file of predictions, without a model."),
    "conformance": Command(
        "ship", "conformance", "Hold what is computed of a public model against transformers alone."
    ),
    "export": Command(
        "ship", "export", "Write a model in another layout: Hugging Face's, llama.cpp's, peft's or ours."
    ),
    "push": Command("ship", "push", "Send a model directory to the hub, with its card."),
    "import": Command("ship", "import_llava", "Convert a Hugging Face LLaVA directory to a model directory of ours."),
    "convert-gguf": Command("ship", "convert_gguf", "Convert a GGUF language model to a Hugging Face directory."),
    "clip": Command("clip", "clip", "Train a CLIP or SigLIP; classify, retrieve, search and study with one."),
    "generate": Command("clip", "generate", "Train a generator of pictures from a CLIP, and draw with one."),
}


def build_parser(names: Iterable[str] = COMMANDS) -> argparse.ArgumentParser:
    """The parser of `mllm` with the subcommands `names`; its help lists them all, by group."""
    groups = {command.group: "" for command in COMMANDS.values() if command.group}
    for group in groups:
        rows = [f"  {name:13} {command.summary}" for name, command in COMMANDS.items() if command.group == group]
        groups[group] = "\n".join((f"{group}:", *rows))
    epilog = "\n\n".join((*groups.values(), END))
    parser = argparse.ArgumentParser("mllm", USAGE, mllm.__doc__, epilog, formatter_class=shared.HelpFormatter)
    parser.add_argument("--version", action="version", version=f"mllm {mllm.__version__}", help="Print the version.")
    parts = parser.add_subparsers(dest="command", prog="mllm", metavar="COMMAND", required=True, help=argparse.SUPPRESS)
    for name in names:
        add = import_module(f"mllm.commands.{COMMANDS[name].module}").add
        add(parts.add_parser(name, help=COMMANDS[name].summary, formatter_class=shared.HelpFormatter))
    return parser


def _command(arguments: Sequence[str]) -> None:
    words = shared.without_local_rank(arguments)
    shared.check_command(words, COMMANDS)
    options, unknown = build_parser([word for word in words[:1] if word in COMMANDS]).parse_known_args(words)
    shared.check_all_known(options, unknown)
    shared.configure_logging(options.verbose)
    shared.check_launcher()
    options.run(options)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `mllm` with `arguments` (those of the process by default) and exit; `run_command` says with which codes."""
    shared.run_command(_command, arguments)


if __name__ == "__main__":
    main()
