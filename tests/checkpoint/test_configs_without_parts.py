"""A config that doesn't say what a model is made of is refused in a line; transformers would fill it with a large model's."""

import json
import shutil

import pytest

import mllm
from mllm.checkpoint.llava import import_llava
from mllm.checkpoint.llava_export import export_llava
from mllm.checkpoint.start import build
from mllm.errors import UserError
from tests.helpers.tiny import tiny_settings

ORIGINAL = {
    "architectures": ["LlavaLlamaForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "mm_projector_type": "mlp2x_gelu",
}


@pytest.fixture(scope="module")
def whole(tiny_parts, tmp_path_factory):
    """Directories `ours`, `hf`, `lm`, `clip` that load."""
    root = tmp_path_factory.mktemp("whole")
    model, processor = build(tiny_settings(tiny_parts))
    mllm.save(root / "ours", model, processor)
    export_llava(model, processor, root / "hf")
    for part in ("lm", "clip"):
        shutil.copytree(tiny_parts / part, root / part)
    return root


@pytest.mark.parametrize("model_type", ["llava", "llava_llama", "llava_mistral", "llava_qwen", None])
@pytest.mark.parametrize("is_pickled", [False, True])
def test_the_original_llava_layout_is_named_with_its_converter(tmp_path, model_type, is_pickled):
    config = ORIGINAL if model_type is None else ORIGINAL | {"model_type": model_type}
    source = tmp_path / "original"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(config))
    if is_pickled:
        (source / "pytorch_model.bin").write_bytes(b"x")
    for read in (mllm.load, lambda directory: import_llava(directory, tmp_path / "out", None, None)):
        with pytest.raises(UserError, match=r"original layout .*convert_llava_weights_to_hf\.py"):
            read(source)


@pytest.mark.parametrize(
    "values,converter",
    [
        ({"image_aspect_ratio": "pad"}, "llava"),
        ({"image_aspect_ratio": "anyres"}, "llava_next"),
        ({"image_aspect_ratio": "anyres", "mm_resampler_type": "spatial_pool"}, "llava_next_video"),
        ({"image_aspect_ratio": "anyres_max_9", "mm_spatial_pool_mode": "bilinear"}, "llava_onevision"),
    ],
)
def test_each_original_layout_is_named_with_the_converter_of_its_own(tmp_path, values, converter):
    (tmp_path / "config.json").write_text(json.dumps(ORIGINAL | values))
    with pytest.raises(UserError, match=rf"transformers' convert_{converter}_weights_to_hf\.py makes"):
        mllm.load(tmp_path)


def without(*path):
    def change(config):
        inner = config
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]

    return change


def only_its_type(*path):
    def change(config):
        inner = config
        for key in path:
            inner = inner[key]
        kept = inner["model_type"]
        inner.clear()
        inner["model_type"] = kept

    return change


@pytest.mark.parametrize(
    "source,change,words",
    [
        ("hf", only_its_type(), "lacks vision_config"),
        ("hf", without("vision_config"), "lacks vision_config"),
        ("hf", without("text_config"), "lacks text_config"),
        ("hf", without("text_config", "model_type"), "lacks text_config"),
        ("hf", only_its_type("text_config"), "its files hold"),
        ("hf", only_its_type("vision_config"), "its files hold"),
        ("hf", without("text_config", "intermediate_size"), "its files hold"),
        ("ours", without("text_config"), "lacks text_config"),
        ("ours", only_its_type("vision_config"), r"lacks vision_config\.image_size"),
        ("lm", only_its_type(), "its files hold"),
        ("lm", without("num_hidden_layers"), "its files hold"),
        ("clip", only_its_type(), "its files hold"),
        ("clip", without("num_hidden_layers"), "its files hold"),
    ],
)
def test_a_config_that_lacks_a_part_builds_no_model_of_defaults(whole, tmp_path, source, change, words):
    shutil.copytree(whole / source, tmp_path / "broken")
    config = json.loads((tmp_path / "broken" / "config.json").read_text())
    change(config)
    (tmp_path / "broken" / "config.json").write_text(json.dumps(config))
    settings = tiny_settings(whole)
    if source in ("ours", "hf"):
        with pytest.raises(UserError, match=words):
            mllm.load(tmp_path / "broken")
        return
    part = "language_model" if source == "lm" else "vision_encoder"
    broken = getattr(settings, part).model_copy(update={"path": str(tmp_path / "broken")})
    with pytest.raises(UserError, match=words):
        build(settings.model_copy(update={part: broken}))
