"""Every command in the README and the docs: the walk through a user's own data runs, the rest is parsed as it stands.

What needs a GPU or a download is parsed, too, and not run.
"""

import ast
import json
import re
import shlex
import shutil
from dataclasses import dataclass
from functools import cache

import pytest
import yaml

from tests.helpers.commands import command
from tests.helpers.pages import ROOT, commands, fences, pages

FILES = {fence.file: fence for page in pages() for fence in fences(page) if fence.file}
CONSOLE = [fence for page in pages() for fence in fences(page) if fence.language == "console"]
IN_THE_CHECKOUT = ("benchmarks/", "data_recipes/", "docs/", "ds_configs/", "eval/", "train/")
# Programs that are not ours, in blocks with a marker or as the beginning of a pipe.
FOREIGN = {"cat", "docker", "export", "llama-server", "ollama", "tar", "vllm"}
FOREIGN_MODULES = {"pytest", "sglang.launch_server"}
IN_A_TEXT = re.compile(r"(?<!`)`((?:[A-Z_]+=\S+ )*(?:mllm|make|python) [^`\n]+)`")
WALK = (ROOT / "docs/start/your_own_data.md", ROOT / "docs/start/your_own_benchmark.md")
SCRIPTS = {
    "train/finetune.py": ["train"],
    "train/preference.py": ["train"],
    "train/grpo.py": ["train"],
    "train/contrastive.py": ["clip", "train"],
    "train/diffusion.py": ["generate", "train"],
}


@dataclass(frozen=True)
class Line:
    """A line of a console block."""

    line: str
    place: str
    needs: frozenset[str]


LINES = [Line(line, fence.place, fence.needs) for fence in CONSOLE for line in commands(fence)]


def simple_commands(line):
    """The words of each command of a line, without the variables that are set before it."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    words = []
    for word in [*lexer, ";"]:
        if word and set(word) <= set("|&;"):
            while words and re.match(r"^[A-Z_]+=", words[0]):
                words.pop(0)
            if words:
                yield words[: words.index(">")] if ">" in words else words
            words = []
        else:
            words.append(word)


def check(words, line):
    """Fails unless `words` would be accepted by what they call."""
    program, *rest = words
    program = program.removeprefix(".venv/bin/")
    checks = {
        "accelerate": check_accelerate,
        "bash": check_shell,
        "deepspeed": check_deepspeed,
        "exec": lambda rest, line: check(rest, line),
        "make": check_make,
        "mllm": check_mllm,
        "pip": check_pip,
        "python": check_python,
        "python3": check_python,
        "torchrun": check_torchrun,
        "trap": lambda rest, line: None,
    }
    if program in FOREIGN:
        return
    assert program in checks, f"{line.place}: {program} is no program that this test knows"
    checks[program](rest, line)


@cache
def parser():
    """The parser of `mllm`, with every subcommand."""
    from mllm.cli import build_parser

    return build_parser()


def parse(parser, words):
    try:
        return parser.parse_args(words)
    except SystemExit:
        pytest.fail(f"{' '.join(words)!r} is not accepted")


def check_mllm(rest, line):
    options = parse(parser(), rest)
    for word in rest:
        if word.startswith(IN_THE_CHECKOUT):
            file = word.partition(":")[0]  # of a rule, `path.py:function`
            assert (ROOT / file).exists() or word in FILES, f"{line.place}: {word} is not there"
    check_settings(rest, options)


def check_settings(words, options):
    """Configurations of ours, and of the pages, are loaded with the overrides given."""
    from mllm.commands.train import class_for
    from mllm.contrastive.settings import ContrastiveSettings
    from mllm.generation.kinds import read_kind
    from mllm.settings import apply_overrides, read_yaml, validate_settings

    for word in words if words[0] in ("train", "plan", "clip", "generate") else ():
        if word.endswith(".yaml"):
            assert (ROOT / word).is_file() or word in FILES, f"{word} is neither in the checkout nor on a page"
            values = yaml.safe_load(FILES[word].text) if word in FILES else read_yaml(str(ROOT / word))
            apply_overrides(values, getattr(options, "overrides", []))
            if words[0] == "generate":
                read_kind(values, word)
                continue
            kind = ContrastiveSettings if words[0] == "clip" else class_for(values)
            validate_settings(kind, values, word)


def check_python(rest, line):
    script, *arguments = rest
    if script == "-m":
        return check_module(arguments, line)
    if script in SCRIPTS:
        return check_mllm([*SCRIPTS[script], *arguments], line)
    if script == "eval/run.py":
        assert arguments[0] == "--model", f"{line.place}: eval/run.py takes its model by --model"
        return check_mllm(["eval", *arguments[1:]], line)
    if script in FILES or line.needs:
        return None
    assert (ROOT / script).is_file(), f"{line.place}: {script} is not there"
    known = options_in(ROOT / script)
    unknown = [word for word in arguments if word.startswith("--") and word not in known]
    assert not unknown, f"{line.place}: {script} knows no {unknown}"


def check_module(words, line):
    module, *arguments = words
    if module == "mllm":
        return check_mllm(arguments, line)
    if module in FOREIGN_MODULES:
        return None
    path = ROOT / module.replace(".", "/")
    assert (path / "__main__.py").is_file() or path.with_suffix(".py").is_file(), f"{line.place}: no module {module}"
    return None


def options_in(script):
    """The options that a script, or what it imports of benchmarks, adds to its parser."""
    tree = ast.parse(script.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
            found |= {a.value for a in node.args if isinstance(a, ast.Constant)}
        module = getattr(node, "module", None) if isinstance(node, ast.ImportFrom) else None
        if module:
            path = script.parent / f"{module.rpartition('.')[2]}.py"
            found |= options_in(path) if path.is_file() and path != script else set()
    return found


def check_launched(script, arguments, is_module, line):
    check_python(["-m", script, *arguments] if is_module else [script, *arguments], line)


def check_deepspeed(rest, line):
    from deepspeed.launcher.runner import parse_args

    options = parse_args(rest)
    check_launched(options.user_script, options.user_args, options.module, line)


def check_torchrun(rest, line):
    from torch.distributed.run import get_args_parser

    options = parse(get_args_parser(), rest)
    check_launched(options.training_script, options.training_script_args, options.module, line)


def check_accelerate(rest, line):
    from accelerate.commands.launch import launch_command_parser

    assert rest[0] == "launch", line.place
    options = parse(launch_command_parser(), rest[1:])
    check_launched(options.training_script, options.training_script_args, options.module, line)


def check_make(rest, line):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    asked = {word for word in rest if "=" not in word}
    assert asked <= targets, f"{line.place}: make has no {asked - targets}"


def check_pip(rest, line):
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.optional-dependencies]")[2]
    for name in ",".join(re.findall(r"\[([\w,]+)\]", " ".join(rest))).split(","):
        assert not name or re.search(rf"^{name} = \[", declared, re.MULTILINE), f"{line.place}: no extra {name}"
    assert "download" in line.needs, f"{line.place}: pip downloads; mark the block `needs: download`"


def check_shell(rest, line):
    assert rest[0] == "-c", line.place
    for words in simple_commands(rest[1]):
        check(words, line)


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line.place} {line.line[:60]}")
def test_every_command_of_the_pages_is_accepted_as_it_stands(line):
    for words in simple_commands(line.line):
        check(words, line)


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_that_a_text_names_is_there(page):
    for text in IN_A_TEXT.findall(page.read_text(encoding="utf-8")):
        for program, *rest in simple_commands(text):
            if program == "mllm":
                known = subcommands(parser())
                assert rest[0] in known or not rest[0].islower(), f"{page}: {text}"
            elif program == "make" or rest[0].startswith("benchmarks/"):
                check([program, *rest], Line(text, str(page), frozenset()))


def subcommands(parser):
    """The names of a parser's commands."""
    return {name for action in parser._subparsers._group_actions for name in action.choices}


@pytest.mark.slow
def test_the_walk_through_your_own_data_runs_as_it_is_written(tiny_parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data_recipes").symlink_to(ROOT / "data_recipes")
    # In place of the language model that a command of the page makes from a package of half a gigabyte.
    shutil.copytree(tiny_parts / "lm", "runs/demo/smollm2-135m")
    printed = {}
    for fence in (fence for page in WALK for fence in fences(page)):
        if fence.file:
            (tmp_path / fence.file).parent.mkdir(exist_ok=True)
            (tmp_path / fence.file).write_text(fence.text, encoding="utf-8")
        for line in commands(fence) if fence.language == "console" else ():
            printed[line.split(maxsplit=2)[1]] = walk(shlex.split(line), tmp_path)
    results = json.loads((tmp_path / "runs/mine/eval/results.json").read_text())
    (rows,) = results["scores"].values()
    assert {row["condition"] for row in rows} >= {"model", "withheld", "swapped"}
    assert printed["chat"].count("you> ") == 2 and "saved runs/mine/final" in printed["train"]
    assert (tmp_path / "runs/mine/eval/report.html").is_file()


def walk(words, folder):
    """Run a command of the page in this process; returns what it printed."""
    if words[0] == "python":
        return command(folder / words[1])[0]
    assert words[0] == "mllm", words
    if words[1] == "convert-gguf":
        return ""
    if words[1] == "compare":
        shutil.copytree(words[2], words[3])
    return command(*words[1:])[0]
