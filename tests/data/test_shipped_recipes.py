"""Every recipe and synthesis config that ships is one."""

from importlib import import_module
from pathlib import Path

import pytest

from mllm.data.readers import READERS
from mllm.data.recipe import RecipeSettings
from mllm.settings import Settings, load_settings, read_yaml
from mllm.synthesis.settings import InstructionConfig

ROOT = Path(__file__).parents[2] / "data_recipes"
FILES = sorted(path for path in ROOT.rglob("*.yaml") if path.parent.name != "benchmarks")


def generator_of(path: Path) -> type[Settings]:
    """The settings of the generator in whose package the file lies."""
    settings: type[Settings] = import_module(f"data_recipes.{path.parent.name}.settings").GeneratorSettings
    return settings


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_ships_fits_its_schema_and_says_its_licence(path: Path) -> None:
    values = read_yaml(path)
    if "output" in values:
        load_settings(InstructionConfig if "inputs" in values else generator_of(path), path)
        return
    recipe = load_settings(RecipeSettings, path)
    assert recipe.licence and recipe.stage
    assert all(source.reader in READERS for source in recipe.sources)


def test_names_of_recipes_are_distinct() -> None:
    names = [read_yaml(path)["name"] for path in FILES if "output" not in read_yaml(path)]
    assert len(set(names)) == len(names) >= 9
