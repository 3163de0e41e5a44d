"""Who may import whom: the table of docs/architecture.md, read off the code."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
BASE = {"errors", "registry", "outputs", "files", "config"}
ALLOWED = {
    "errors": set(),
    "registry": {"errors"},
    "outputs": {"errors"},
    "files": {"errors", "outputs"},
    "command": {"errors", "files"},
    "chat_request": set(),
    "config": {"errors"},
    "batch": set(),
    "conversation": BASE,
    "images": BASE,
    "processor": BASE | {"conversation", "images"},
    "model": BASE | {"conversation", "images", "processor", "batch"},
    "data": BASE | {"conversation", "images", "processor", "batch"},
    "synthesis": BASE | {"chat_request", "conversation", "images", "data"},
    "training": BASE | {"conversation", "images", "processor", "batch", "model", "data"},
    "inference": BASE | {"conversation", "images", "processor", "model"},
    "evaluation": BASE
    | {"chat_request", "command", "conversation", "images", "processor", "model", "data", "inference"},
    "contrastive": BASE | {"command", "images", "data", "training", "model", "evaluation"},
    "cli": None,
    "__init__": None,
}
# Single modules of rooms that are otherwise closed: evaluation gives callbacks to training, and knows their protocol.
ALLOWED_MODULES = {"evaluation": {"mllm.training.callback"}}


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_modules_import_only_what_the_table_allows():
    wrong = []
    for path in (ROOT / "mllm").rglob("*.py"):
        relative = path.relative_to(ROOT / "mllm")
        place = relative.parts[0].removesuffix(".py")
        allowed = ALLOWED[place]
        for module in imports_of(path):
            first, _, rest = module.partition(".")
            assert first not in ("train", "eval"), f"{relative} imports {module}"
            target = rest.split(".")[0]
            if module in ALLOWED_MODULES.get(place, ()):
                continue
            if first == "mllm" and target and allowed is not None and target != place and target not in allowed:
                wrong.append(f"{relative} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_scripts_import_nothing_but_mllm_of_ours():
    for folder in ("train", "eval"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not any(m.split(".")[0] in ("train", "eval", "tests") for m in imports_of(path))
