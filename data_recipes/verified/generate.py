"""A run of the generator: prompts whose answers can be verified, the same beside other drawings, and held-out questions.

A drawing's category is known, so "Is this an animal?" has one right answer, and a yes to what isn't there is a
hallucinated object. The drawings that are asked about are those that the demo never trains on.
"""

import random
from typing import Any

from data_recipes.demo.captioned_parquet import is_clear, load_captioned_parquet
from data_recipes.demo.categories import CATEGORIES
from data_recipes.demo.drafts import Drafted, HeldoutQuestion, LoadedSource
from data_recipes.demo.easyvqa import load_easyvqa
from data_recipes.demo.generate import picture_hashes, without_hashes
from data_recipes.demo.picture import Picture
from data_recipes.demo.writing import ImageStore, hash_directory, question_rows, sample_rows, write_lines
from data_recipes.verified.settings import GeneratorSettings
from mllm.files import atomic_directory, write_json_atomically
from mllm.outputs import check_directory
from mllm.synthesis.prompts import seeded_random

BY = "python -m data_recipes.verified"
REPORT_NAME = "report.json"
KINDS = ("yes_no", "category", "shape", "color")


def generate(config: GeneratorSettings) -> dict[str, Any]:
    """Write `config.output` whole or not at all; returns the report, which is also in `report.json`.

    The directory holds `images/`, `prompts.jsonl` (samples whose last answer is the right one), `shuffled.jsonl` (the same
    questions and answers, each beside the drawing of another) and `heldout/existence.jsonl`. An earlier run's directory is
    replaced. Raises UserError for unusable sources, and where the directory holds anything else, or a source.
    """
    check_directory(config.output, BY, [source.path for source in config.sources])
    loaded = [load_captioned_parquet(source, config.seed) for source in config.sources]
    heldout = picture_hashes(picture for source in loaded for picture in source.test)
    shapes = load_easyvqa(config.shapes, config.seed)
    heldout |= picture_hashes(shapes.test)
    sources: list[LoadedSource] = [*loaded, shapes]
    drafts = [item for source in sources for item in _prompts(source, heldout, config.seed)]
    seeded_random(config.seed, "prompts").shuffle(drafts)
    asked = [picture for source in loaded for picture in source.test if picture.category]
    seeded_random(config.seed, "asked").shuffle(asked)  # so that the first questions are a fair sample
    questions = [
        question for picture in asked for question in _existence(picture, config.absent_per_drawing, config.seed)
    ]
    with atomic_directory(config.output, BY) as root:
        store = ImageStore(root)
        files = {
            "prompts.jsonl": sample_rows(drafts, store),
            "shuffled.jsonl": sample_rows(beside_others(drafts, seeded_random(config.seed, "shuffled")), store),
            "heldout/existence.jsonl": question_rows(questions, store),
        }
        for name, rows in files.items():
            write_lines(root / name, rows)
        report = {
            "data_hash": hash_directory(root),
            "seed": config.seed,
            "files": {name: len(rows) for name, rows in files.items()},
        }
        write_json_atomically(root / REPORT_NAME, report)
    return report


def _prompts(source: LoadedSource, heldout: set[str], seed: int) -> list[Drafted]:
    train = without_hashes(source.train, heldout)
    return [item for item in source.write(train, seed).instruct if item.sample.kind in KINDS]


def beside_others(drafts: list[Drafted], rng: random.Random) -> list[Drafted]:
    """Return the samples in their order, each with the picture of the one before it in a random round."""
    order = list(range(len(drafts)))
    rng.shuffle(order)
    pictures = {here: drafts[before].picture for before, here in zip(order, order[1:] + order[:1], strict=True)}
    return [Drafted(pictures[index], item.sample) for index, item in enumerate(drafts)]


def _existence(picture: Picture, absent: int, seed: int) -> list[HeldoutQuestion]:
    """Ask about the picture's category (type `present`) and `absent` others that it clearly doesn't show (`absent`)."""
    rng = seeded_random(seed, "existence", picture.source, picture.key)
    others = [name for name in CATEGORIES if name != picture.category and is_clear(picture, name)]
    asked = [(str(picture.category), "yes", "present")]
    asked += [(name, "no", "absent") for name in rng.sample(others, min(absent, len(others)))]
    return [
        HeldoutQuestion(
            f"{picture.source}-{picture.key}-{name}", picture, rng.choice(CATEGORIES[name].questions), answer, kind
        )
        for name, answer, kind in asked
    ]
