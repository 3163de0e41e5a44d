"""The data of verified answers: held-out drawings stay out, questions have one right answer, the control its own pictures."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_recipes.demo.settings import CaptionedParquetSource, EasyVqaSource
from data_recipes.verified.generate import generate
from data_recipes.verified.settings import GeneratorSettings
from mllm.improve.run import training_values
from mllm.improve.settings import ImproveSettings
from mllm.settings import load_settings
from tests.helpers.demo_inputs import read_lines, tiny_rows, write_easyvqa, write_parquet

ROUNDS = Path(__file__).parents[2] / "train" / "configs" / "verified_rounds.yaml"


@pytest.fixture
def config(tmp_path) -> GeneratorSettings:
    drawings = write_parquet(tmp_path / "drawings.parquet", tiny_rows())
    source = CaptionedParquetSource(
        kind="captioned_parquet", name="clipart", path=drawings, yes_no_count=40, category_count=12
    )
    shapes = EasyVqaSource(kind="easyvqa", path=write_easyvqa(tmp_path / "shapes"), yes_no_count=20, shape_count=6)
    return GeneratorSettings(output=tmp_path / "out", sources=(source,), shapes=shapes)


def asked(row: dict[str, Any]) -> tuple[str, str, str]:
    user, assistant = row["messages"]
    return row["id"], user["content"][-1]["text"], assistant["content"][0]["text"]


def test_no_held_out_drawing_is_in_a_prompt_and_each_is_asked_about_one_category_that_it_shows(config):
    generate(config)
    prompts, questions = (read_lines(config.output / name) for name in ("prompts.jsonl", "heldout/existence.jsonl"))
    assert not {row["images"][0] for row in prompts} & {row["image"] for row in questions}
    kinds = Counter((row["image"], row["type"]) for row in questions)
    assert len({row["image"] for row in questions}) == 24  # every drawing that is held out
    assert {count for (_, kind), count in kinds.items() if kind == "present"} == {1}
    assert {count for (_, kind), count in kinds.items() if kind == "absent"} == {config.absent_per_drawing}
    assert {row["type"]: row["answer"] for row in questions} == {"present": "yes", "absent": "no"}


def test_the_control_has_the_questions_and_answers_of_the_prompts_beside_the_drawing_of_another(config):
    generate(config)
    prompts, shuffled = (read_lines(config.output / name) for name in ("prompts.jsonl", "shuffled.jsonl"))
    assert [asked(row) for row in prompts] == [asked(row) for row in shuffled]
    images, others = ([row["images"][0] for row in rows] for rows in (prompts, shuffled))
    assert Counter(images) == Counter(others)
    assert sum(map(str.__ne__, images, others)) > 0.8 * len(images)


def test_yes_is_as_often_right_as_no_and_the_same_seed_writes_the_same(config):
    first = generate(config)
    answers = Counter(asked(row)[1:] for row in read_lines(config.output / "prompts.jsonl") if row["kind"] == "yes_no")
    assert answers and all(answers[text, "yes"] == answers[text, "no"] for text, _ in answers)
    assert generate(config)["data_hash"] == first["data_hash"]


def test_the_rounds_that_ship_train_by_a_config_that_ships():
    settings = load_settings(ImproveSettings, ROUNDS)
    values = training_values(settings, settings.model, Path(settings.run_dir), Path(settings.prompts.recipe))
    assert values["preference"] and values["model"]["init_from"] == settings.model
