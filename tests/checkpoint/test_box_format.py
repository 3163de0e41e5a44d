"""The box format belongs to a model: it is saved, taken over by the next stage, exported and imported."""

import json

import pytest

from mllm.checkpoint import ours
from mllm.checkpoint.card import model_card
from mllm.checkpoint.llava import import_llava
from mllm.checkpoint.llava_export import export_llava
from mllm.checkpoint.load import load
from mllm.checkpoint.start import build, load_processor
from mllm.errors import UserError
from mllm.model.settings import ModelSettings
from tests.helpers.tiny import tiny_settings


def built(parts, box_format=None):
    settings = tiny_settings(parts)
    return build(settings.model_copy(update={"box_format": box_format}))


def test_a_model_is_loaded_with_the_box_format_that_it_was_saved_with(tiny_parts, tmp_path):
    ours.save(tmp_path / "m", *built(tiny_parts, "qwen_vl"))
    assert load(tmp_path / "m")[1].box_format == "qwen_vl"
    assert load(tmp_path / "m", box_format="internvl")[1].box_format == "internvl"
    stage = {"init_from": str(tmp_path / "m"), "prompt_format": "chatml"}
    assert load_processor(ModelSettings(**stage)).box_format == "qwen_vl"
    assert load_processor(ModelSettings(**stage, box_format="kosmos2")).box_format == "kosmos2"


def test_a_model_that_says_nothing_has_llavas_format_and_is_written_as_before(tiny_parts, tmp_path):
    ours.save(tmp_path / "m", *built(tiny_parts))
    assert "box_format" not in json.loads((tmp_path / "m" / "config.json").read_text())
    assert load(tmp_path / "m")[1].box_format == "llava"


def test_an_unknown_format_ends_a_run_before_a_weight_is_read(tiny_parts):
    settings = tiny_settings(tiny_parts).model_copy(update={"box_format": "coco"})
    with pytest.raises(UserError, match="unknown box format 'coco'; choose one of: internvl, kosmos2, llava"):
        load_processor(settings)


def test_the_box_format_survives_an_export_and_an_import(tiny_parts, tmp_path):
    model, processor = built(tiny_parts, "qwen25_vl_json")
    export_llava(model, processor, tmp_path / "hf")
    assert load(tmp_path / "hf")[1].box_format == "qwen25_vl_json"
    import_llava(tmp_path / "hf", tmp_path / "back", None, None)
    assert load(tmp_path / "back")[1].box_format == "qwen25_vl_json"
    import_llava(tmp_path / "hf", tmp_path / "other", None, None, "qwen_vl")
    assert load(tmp_path / "other")[1].box_format == "qwen_vl"
    assert "- box format: qwen25_vl_json" in model_card(tmp_path / "hf", model, processor, "hf")
