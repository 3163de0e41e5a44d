"""A run whose chat template prints the date."""

import json
from datetime import date

import pytest
from transformers import AutoTokenizer

from mllm.conversation import native
from mllm.finetune.run import finetune
from mllm.finetune.settings import FinetuneSettings
from mllm.settings import validate_settings
from tests.helpers.runs import config, series
from tests.helpers.templates import DATED


@pytest.fixture
def calendar(monkeypatch):
    """Sets what day it is."""

    def turn_to(day):
        monkeypatch.setattr(native, "date", type("Day", (date,), {"today": classmethod(lambda cls: day)}))

    return turn_to


def test_a_run_that_goes_on_another_day_prints_the_day_it_began(tiny_parts, recipe, tmp_path, calendar):
    dated = tmp_path / "dated"
    dated.mkdir()
    for file in (tiny_parts / "lm").iterdir():
        (dated / file.name).symlink_to(file)
    tokenizer = AutoTokenizer.from_pretrained(tiny_parts / "lm")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (dated / file).unlink(missing_ok=True)
    tokenizer.chat_template = DATED
    tokenizer.save_pretrained(dated)

    def run(name, stop_after=None):
        values = config(tiny_parts, recipe, tmp_path / name, model__prompt_format="native")
        values["model"]["language_model"] = {"path": str(dated)}
        values["train"] |= {"epochs": 1, "save_every_steps": 1}
        return finetune(validate_settings(FinetuneSettings, values, "test"), stop_after)

    calendar(date(2026, 1, 31))
    run("whole")
    run("cut", stop_after=1)
    calendar(date(2026, 2, 1))
    final = run("cut")
    assert json.loads((final / "config.json").read_text())["prompt_day"] == "2026-01-31"
    assert series(tmp_path / "cut") == series(tmp_path / "whole")
