"""The pages: links and pictures are there, blocks are what they say, generated pages are those of the code."""

import importlib.util
import json
import re

import pytest
import yaml

from tests.helpers.pages import LANGUAGES, ROOT, fences, pages

PAGES = pages()
FENCED = [fence for page in PAGES for fence in fences(page)]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
OUR_PATH = re.compile(r"`((?:mllm|tests|train|eval|benchmarks|data_recipes|ds_configs)/[\w./-]*\w)(?:::\w+)?`")
NEEDS = {"gpu", "download"}


def without_fences(page):
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page):
    """What GitHub makes of a page's headings."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", without_fences(page), flags=re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.add(re.sub(r"[^\w\- ]", "", words).replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_picture_and_path_of_a_page_is_there(page):
    dead = []
    for target in LINK.findall(without_fences(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            dead.append(target)
    dead += [path for path in OUR_PATH.findall(without_fences(page)) if not (ROOT / path).exists()]
    assert not dead


def test_every_page_can_be_reached_from_the_first_one():
    reached, waiting = set(), [ROOT / "README.md", ROOT / "docs" / "index.md"]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        targets = {(page.parent / t.partition("#")[0]).resolve() for t in LINK.findall(without_fences(page))}
        waiting += [t for t in targets if t.suffix == ".md" and t.is_file()]
    assert {page.relative_to(ROOT) for page in PAGES} - {page.relative_to(ROOT) for page in reached} == set()


def test_every_block_is_of_a_known_language_and_what_it_needs_is_known():
    assert {fence.place for fence in FENCED if fence.language not in LANGUAGES or not fence.needs <= NEEDS} == set()


@pytest.mark.parametrize(
    "fence", [f for f in FENCED if f.language in ("python", "yaml", "json")], ids=lambda f: f.place
)
def test_every_block_of_python_yaml_and_json_can_be_read(fence):
    read = {"python": lambda text: compile(text, fence.place, "exec"), "yaml": yaml.safe_load, "json": json.loads}
    read[fence.language](fence.text)


def test_pages_that_are_named_in_code_and_configs_are_there():
    missing = []
    for folder in ("mllm", "train", "eval", "benchmarks", "data_recipes", "ds_configs"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".yaml", ".md"):
                named = re.findall(r"\bdocs/[\w/-]+\.(?:md|py|png)", path.read_text(encoding="utf-8"))
                missing += [f"{path.relative_to(ROOT)}: {name}" for name in named if not (ROOT / name).is_file()]
    assert not missing


def test_generated_pages_are_those_of_the_code():
    spec = importlib.util.spec_from_file_location("build_reference", ROOT / "docs" / "build_reference.py")
    builder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builder)
    old = [path.name for path, text in builder.build().items() if path.read_text(encoding="utf-8") != text]
    assert not old, f"run `make docs`: {old}"
