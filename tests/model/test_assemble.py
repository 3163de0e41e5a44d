"""One function makes every model, whatever its parts come from."""

import ast
from pathlib import Path

import pytest
import torch

import mllm
from mllm.checkpoint import ours
from mllm.checkpoint.llava import read_llava_config
from mllm.checkpoint.llava_export import export_llava
from mllm.checkpoint.start import begin, begin_model, build
from mllm.errors import UserError
from mllm.model.assemble import Parts, assemble, saved_shapes
from mllm.model.settings import ImageSettings, ModelSettings, ProjectorSettings
from tests.helpers.tiny import tiny_settings

ROOM = Path(mllm.__file__).parent


def test_models_are_made_in_one_place():
    makers = [
        path.relative_to(ROOM).as_posix()
        for path in sorted(ROOM.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "MultimodalLM"
    ]
    assert makers == ["model/assemble.py"]


@pytest.mark.parametrize("encoder", ["clip", "siglip"])
def test_parts_from_settings_and_every_format_assemble_models_of_equal_names_and_shapes(tiny_parts, tmp_path, encoder):
    model, processor = build(tiny_settings(tiny_parts, encoder))
    mllm.save(tmp_path / "ours", model, processor)
    export_llava(model, processor, tmp_path / "hf")
    shapes = saved_shapes(model)
    assert saved_shapes(ours.begin(tmp_path / "ours").model) == shapes
    assert saved_shapes(mllm.load(tmp_path / "hf")[0]) == shapes
    of_settings = saved_shapes(begin(tiny_settings(tiny_parts, encoder)).model)
    assert of_settings == shapes


def test_an_assembled_model_has_no_contents_but_its_buffers(tiny_parts):
    model = begin(tiny_settings(tiny_parts)).model
    assert all(parameter.is_meta and parameter.dtype == torch.float32 for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())


def test_kernel_and_noise_are_given_when_a_model_is_made(tiny_parts, tmp_path):
    settings = tiny_settings(tiny_parts)
    made = begin_model(settings, {}, attention_kernel="mask", neftune_alpha=5.0)
    assert (made.model.attention_kernel, made.model.neftune_alpha) == ("mask", 5.0)
    mllm.save(tmp_path / "ours", *build(settings))
    again = ModelSettings(init_from=str(tmp_path / "ours"))
    loaded = begin_model(again, {}, attention_kernel="flex", neftune_alpha=1.0).model
    assert (loaded.attention_kernel, loaded.neftune_alpha) == ("flex", 1.0)
    assert (mllm.load(tmp_path / "ours")[0].attention_kernel, loaded.adapters) == ("segments", {})


def test_a_language_model_that_there_is_no_class_for_is_one_line(tiny_parts, tmp_path):
    model, processor = build(tiny_settings(tiny_parts))
    export_llava(model, processor, tmp_path / "hf")
    vision = read_llava_config(tmp_path / "hf").vision_config
    parts = Parts(vision, -2, "drop", ProjectorSettings(), vision, ImageSettings())
    with pytest.raises(UserError, match="no language model can be built by a 'clip_vision_model' config") as raised:
        assemble(parts, image_token_id=0)
    assert "\n" not in str(raised.value)
