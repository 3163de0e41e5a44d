"""Who may import whom: `architecture_law.py`, read off the code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.house import circles_of, import_statements, parsed
from tests.architecture_law import FLOORS, ROOMS

ROOT = Path(__file__).parents[1]
OURS = ("mllm", "train", "eval", "tests", "benchmarks", "data_recipes")


def imports_of(tree: ast.Module) -> Iterator[str]:
    """The modules that a file imports, also within functions; of `from mllm import x`, `mllm.x`."""
    for node in import_statements(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif node.module in OURS:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif node.module:
            yield node.module


def room_of(module: str) -> str | None:
    """The room of a module of ours, or the folder that it is in outside `mllm/`; None for another's."""
    first, _, rest = module.partition(".")
    return (rest.split(".")[0] if first == "mllm" else first) if first in OURS else None


def files() -> Iterator[tuple[str, Path, ast.Module]]:
    """Each file of `mllm/` but its own `__init__.py`, whose names are lazy, with its room."""
    for path, tree in parsed(ROOT / "mllm").items():
        place = path.relative_to(ROOT / "mllm").parts[0].removesuffix(".py")
        if place != "__init__":
            yield place, path, tree


def test_every_room_is_in_the_table_and_every_floor_stands_on_those_below():
    assert {place for place, *_ in files()} <= ROOMS.keys()
    floors = {name: floor.number for floor in FLOORS for name in floor.rooms}
    assert len(floors) == sum(len(floor.rooms) for floor in FLOORS)
    for room in ROOMS.values():
        assert all(floors[other] <= floors[room.name] for other in room.may_import), room.name
    assert "contrastive" not in ROOMS["finetune"].may_import and "finetune" not in ROOMS["contrastive"].may_import
    assert [room.name for room in ROOMS.values() if "studies" in room.may_import] == ["commands"]


def test_rooms_import_only_what_the_table_allows():
    wrong: dict[tuple[str, str | None], list[str]] = {}
    for place, path, tree in files():
        rooms = {room_of(module) for module in imports_of(tree)} - {None, "", "__version__", place}
        for room in rooms - ROOMS[place].may_import:
            wrong.setdefault((place, room), []).append(str(path.relative_to(ROOT)))
    assert not wrong, wrong


def test_no_files_import_each_other_in_a_circle():
    assert not circles_of(ROOT)


@pytest.mark.parametrize("folder", ["train", "eval"])
def test_scripts_import_nothing_but_mllm_of_ours(folder):
    for tree in parsed(ROOT / folder).values():
        assert not any(m.split(".")[0] in OURS and not m.startswith("mllm") for m in imports_of(tree))


def test_no_test_module_imports_another_or_a_conftest():
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path, tree in parsed(ROOT / "tests").items()
        for module in imports_of(tree)
        if module.startswith("tests.") and module.rpartition(".")[2].startswith(("test_", "conftest"))
    ]
    assert not wrong, "\n".join(wrong)


def test_no_two_test_files_share_a_name():
    """pytest imports a test file by its name alone."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(set(names)) == len(names), sorted({name for name in names if names.count(name) > 1})
