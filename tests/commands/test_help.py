"""What `--help` says of every command and option, and what each start imports."""

import argparse
import re
import subprocess
import sys

import pytest

from mllm.cli import COMMANDS, build_parser

# Nothing is written about what argparse adds itself, or what a group of commands only passes on.
HEAVY = (
    "torch",
    "transformers",
    "numpy",
    "PIL",
    "pyarrow",
    "datasets",
    "matplotlib",
    "accelerate",
    "deepspeed",
    "peft",
)


def parsers(parser, name="mllm"):
    """(name, parser) of every command and subcommand below `parser`."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, child in action.choices.items():
                yield f"{name} {word}", child
                yield from parsers(child, f"{name} {word}")


ALL = dict(parsers(build_parser()))


def options_of(parser):
    taken = (argparse._HelpAction, argparse._SubParsersAction)
    return [action for action in parser._actions if not isinstance(action, taken)]


def is_sentence(text):
    return bool(text) and text[0].isupper() and text.endswith(".")


def test_every_command_is_known_to_the_walk():
    assert {name.removeprefix("mllm ") for name in ALL} >= {*COMMANDS, "clip train", "data validate", "clip adapt"}


@pytest.mark.parametrize("name", ALL)
def test_every_command_has_a_description_and_an_example_of_itself(name):
    parser = ALL[name]
    assert is_sentence(parser.description)
    assert re.search(r"^examples?:\n", parser.epilog or "")
    if name != "mllm estimate":
        assert name in parser.epilog


@pytest.mark.parametrize("name", ALL)
def test_every_option_is_a_sentence_with_its_default(name):
    for action in options_of(ALL[name]):
        help_text = action.help % {"default": action.default} if action.help else ""
        place = f"{name} {action.option_strings or action.dest}"
        assert is_sentence(help_text), f"{place}: {help_text!r}"
        if action.default not in (None, False, [], argparse.SUPPRESS):
            assert "(default: " in help_text, f"{place}: {help_text!r} doesn't show {action.default!r}"


def test_help_lists_every_command_in_its_group(capsys):
    with pytest.raises(SystemExit) as left:
        build_parser(()).parse_args(["--help"])
    shown = capsys.readouterr().out
    assert left.value.code == 0
    for name, command in COMMANDS.items():
        assert (f"  {name:13} {command.summary}\n" in shown) == bool(command.group)
    groups = re.findall(r"^(\w+):$", shown, re.MULTILINE)
    assert groups == ["options", "train", "data", "talk", "score", "ship", "clip", "example"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "unwanted"),
    [
        (["--help"], (*HEAVY, "pydantic", "yaml", "rich")),
        (["plan", "--help"], HEAVY),
        (["train", "--help"], HEAVY),
        (["eval", "--help"], HEAVY),
        (["clip", "train", "--help"], HEAVY),
        (["schema"], HEAVY),
        (["schema", "clip"], HEAVY),
        (["schema", "synth"], HEAVY),
        (["train", "none.yaml"], HEAVY),
        (["eval", "--list"], ("torch", "transformers", "matplotlib", "accelerate")),
        (["score", "--metric", "none", "none.jsonl"], ("torch", "transformers", "matplotlib", "accelerate")),
        (["compare", "none", "none"], ("torch", "transformers", "matplotlib", "accelerate")),
        (["data", "validate", "none.yaml"], ("torch", "transformers", "matplotlib", "accelerate")),
        (["synth", "none.yaml"], ("torch", "transformers", "matplotlib", "accelerate")),
    ],
    ids=" ".join,
)
def test_a_command_imports_no_package_that_it_does_not_need(arguments, unwanted):
    code = f"""
import atexit, sys
atexit.register(lambda: print("imported:", *[name for name in {unwanted!r} if name in sys.modules], file=sys.stderr))
from mllm.cli import main
main({arguments!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].split() == ["imported:"], done.stderr
    assert done.returncode == (2 if {"none", "none.yaml"} & set(arguments) else 0), done.stderr
