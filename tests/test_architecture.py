"""Who may import whom: the table of docs/architecture.md, read off the code."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
GROUND = {"console", "errors", "foreign_keys", "registry", "outputs", "files", "settings", "html"}
FIRST = GROUND | {"batch", "clients", "conversation", "kernels", "media"}
SECOND = FIRST | {"processor", "model"}
THIRD = SECOND | {"checkpoint", "data"}
FOURTH = THIRD | {"inference", "training"}
FIFTH = FOURTH | {"evaluation", "synthesis"}
SIXTH = FIFTH | {"contrastive", "finetune"}
ALLOWED = {
    "console": set(),
    "errors": set(),
    "foreign_keys": set(),
    "registry": {"errors"},
    "outputs": {"errors"},
    "files": {"errors", "outputs"},
    "html": {"files"},
    "settings": {"errors", "foreign_keys"},
    "batch": set(),
    "clients": GROUND,
    "conversation": GROUND,
    "kernels": GROUND | {"batch"},
    "media": GROUND,
    "processor": GROUND | {"conversation", "media"},
    "model": FIRST | {"processor"},
    "checkpoint": SECOND,
    "data": FIRST | {"processor"},
    "inference": THIRD - {"data"},
    "training": THIRD,
    "evaluation": FOURTH - {"training"},
    "synthesis": FOURTH - {"training"},
    "contrastive": FIFTH,
    "finetune": FIFTH,
    "studies": SIXTH,
    "commands": SIXTH | {"studies"},
    "cli": None,
    "__main__": None,
    "__init__": None,
}


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
            if first == "mllm" and target and allowed is not None and target != place and target not in allowed:
                wrong.append(f"{relative} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_scripts_import_nothing_but_mllm_of_ours():
    for folder in ("train", "eval"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not any(m.split(".")[0] in ("train", "eval", "tests") for m in imports_of(path))
