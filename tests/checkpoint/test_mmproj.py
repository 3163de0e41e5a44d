"""llama.cpp's projector file: what its graph makes of our tensors is what our encoder and projector give."""

import pytest
import torch
from torch.nn.functional import conv2d, gelu, layer_norm, linear, scaled_dot_product_attention

import mllm
from mllm.checkpoint.start import build
from mllm.cli import build_parser
from mllm.errors import UserError
from tests.helpers.tiny import tiny_settings

gguf = pytest.importorskip("gguf", reason="needs the package gguf")


def make(parts, encoder, fit="pad", feature_layer=-2, **projector):
    base = tiny_settings(parts, encoder, **projector)
    changes = {
        "image": base.image.model_copy(update={"fit": fit}),
        "vision_encoder": base.vision_encoder.model_copy(update={"feature_layer": feature_layer}),
    }
    model, processor = build(base.model_copy(update=changes))
    torch.manual_seed(3)
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    features = 2 + torch.randn(4, 16, model.vision_encoder.width)
    model.projector.calibrate(features, model.language_model.get_input_embeddings().weight)
    return model.eval(), processor


def run_export(*arguments):
    options = build_parser().parse_args(["export", *map(str, arguments)])
    options.run(options)


def graph_of_llama_cpp(file, pixels):
    """Image tokens [N, P, D] of pixels [N, 3, S, S] by the steps of llama.cpp's graph of LLaVA (models/llava.cpp).

    The class token stands in front, where its positions and the choice of rows take it to be; its issue 25814 is that it
    doesn't.
    """
    reader = gguf.GGUFReader(file)
    t = {tensor.name: torch.tensor(tensor.data).float() for tensor in reader.tensors}
    value = {name: field.contents() for name, field in reader.fields.items()}
    activation = gelu if value["clip.use_gelu"] else lambda x: x * torch.sigmoid(1.702 * x)

    def norm(x, name):
        epsilon = value["clip.vision.attention.layer_norm_epsilon"]
        return layer_norm(x, x.shape[-1:], t[f"{name}.weight"], t[f"{name}.bias"], epsilon)

    def layer(x, name):
        return linear(x, t[f"{name}.weight"], t[f"{name}.bias"])

    x = conv2d(pixels, t["v.patch_embd.weight"], t.get("v.patch_embd.bias"), value["clip.vision.patch_size"])
    x = x.flatten(2).transpose(1, 2)
    if "v.class_embd" in t:
        x = torch.cat([t["v.class_embd"].expand(len(x), 1, -1), x], 1)
    x = x + t["v.position_embd.weight"]
    x = norm(x, "v.pre_ln") if "v.pre_ln.weight" in t else x
    for index in range(max(value["clip.vision.feature_layer"])):
        name = f"v.blk.{index}"
        inner = norm(x, f"{name}.ln1")
        heads = [
            layer(inner, f"{name}.attn_{part}").unflatten(-1, (value["clip.vision.attention.head_count"], -1))
            for part in "qkv"
        ]
        attended = scaled_dot_product_attention(*(head.transpose(1, 2) for head in heads))
        x = x + layer(attended.transpose(1, 2).flatten(2), f"{name}.attn_out")
        x = x + layer(activation(layer(norm(x, f"{name}.ln2"), f"{name}.ffn_up")), f"{name}.ffn_down")
    x = norm(x, "v.post_ln") if "v.post_ln.weight" in t else x
    x = x[:, 1:] if "v.class_embd" in t else x
    return layer(gelu(layer(x, "mm.0")), "mm.2")


@pytest.mark.parametrize("encoder,feature_layer", [("clip", -2), ("clip", -1), ("siglip", -2), ("siglip", -1)])
def test_the_projector_file_gives_our_image_tokens(tiny_parts, tmp_path, caplog, encoder, feature_layer):
    model, processor = make(tiny_parts, encoder, feature_layer=feature_layer)
    mllm.save(tmp_path / "ours", model, processor)
    run_export(tmp_path / "ours", tmp_path / "out", "--layout", "gguf")
    assert ("class token behind the patches" in caplog.text) == (encoder == "clip")
    pixels = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        expected = model.encode_images(pixels, processor.planner.plan([(16, 16)] * 2)).unflatten(0, (2, -1))
    found = graph_of_llama_cpp(tmp_path / "out" / "mmproj.gguf", pixels)
    # The file's matrices are in float16.
    assert (found - expected).abs().max() < 0.01 * expected.abs().max()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "convert_hf_to_gguf.py" in card and "--mmproj" in card
    assert mllm.load(tmp_path / "out")[1].preparer == processor.preparer


@pytest.mark.parametrize(
    "change,words",
    [
        ({"fit": "crop"}, "pads images to a square"),
        ({"shuffle": 2}, "pixel shuffle"),
        ({"kind": "resampler", "tokens": 9}, "this model has resampler: train with"),
    ],
)
def test_what_llama_cpp_does_in_another_way_is_refused(tiny_parts, tmp_path, change, words):
    mllm.save(tmp_path / "ours", *make(tiny_parts, "clip", **change))
    with pytest.raises(UserError, match=words):
        run_export(tmp_path / "ours", tmp_path / "out", "--layout", "gguf")
    assert not (tmp_path / "out").exists()
