"""Directories of open_clip are read, and written: features are those of its own model and tokenizer."""

import json

import pytest
import torch
from safetensors.torch import load_file

from mllm.checkpoint.dual import load_dual
from mllm.checkpoint.dual_export import export_dual
from mllm.checkpoint.open_clip_config import read_config
from mllm.checkpoint.parts import load_vision_model
from mllm.contrastive.zeroshot import class_features
from mllm.errors import UserError
from mllm.inference.dual_features import load_encoder
from mllm.model.dual_encoder import train_tokenizer
from tests.helpers.dual_encoders import save_tiny_dual
from tests.helpers.open_clip import open_clip, save_tiny_open_clip

__all__ = ["open_clip"]
TEXTS = ["a photo of a Dog's café, 12 …", "日本 hi_there"]
NAMES, TEMPLATES = ["tench", "Gila monster", "kite (bird of prey)"], ["a photo of a {}.", "itap of my {}."]


@pytest.mark.parametrize(("kind", "quick_gelu"), [("CLIP", True), ("CustomTextCLIP", False)])
def test_features_and_zero_shot_weights_are_open_clips(open_clip, tmp_path, kind, quick_gelu):
    model, tokenize = open_clip("model"), open_clip("tokenizer").tokenize
    peer = save_tiny_open_clip(tmp_path / "theirs", getattr(model, kind), quick_gelu=quick_gelu)
    encoder = load_encoder(tmp_path / "theirs")
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        images, texts = peer.encode_image(pixels, normalize=True), peer.encode_text(tokenize(TEXTS), normalize=True)
        builder = open_clip("zero_shot_classifier").build_zero_shot_classifier
        weights = builder(peer, tokenize, NAMES, TEMPLATES)
    assert torch.allclose(encoder.pixels_to_features(pixels), images, atol=1e-5)
    assert torch.allclose(encoder.texts(TEXTS), texts, atol=1e-5)
    assert torch.allclose(class_features(encoder, NAMES, TEMPLATES), weights.T, atol=1e-5)
    preparer = encoder.preparer
    assert (preparer.fit, int(preparer.resample), preparer.mean) == ("stretch", 2, (0.4, 0.5, 0.6))


def test_both_ways_give_the_same_weights_and_names(open_clip, tmp_path):
    peer = save_tiny_open_clip(tmp_path / "theirs", open_clip("model").CLIP, train_tokenizer(TEXTS, 300, 77))
    export_dual(tmp_path / "theirs", tmp_path / "ours", "transformers")
    export_dual(tmp_path / "ours", tmp_path / "back", "open_clip")
    theirs, back = ((tmp_path / name / "open_clip_config.json") for name in ("theirs", "back"))
    first, second = (json.loads(path.read_text())["model_cfg"] for path in (theirs, back))
    assert first == second
    again = open_clip("model").CLIP(**second)
    again.load_state_dict(load_file(tmp_path / "back" / "open_clip_model.safetensors"))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in peer.state_dict().items())
    image_side = load_vision_model(str(tmp_path / "ours"), torch.float32)  # what a multimodal LLM takes
    assert torch.equal(image_side.state_dict()["embeddings.patch_embedding.weight"], peer.visual.conv1.weight)
    with pytest.raises(UserError, match=r"is in open_clip's layout.*mllm clip export"):
        load_vision_model(str(tmp_path / "theirs"), torch.float32)


def test_a_tokenizer_and_an_end_token_of_ones_own_go_along(open_clip, tmp_path):
    clip = save_tiny_dual(tmp_path, "clip")
    export_dual(clip, tmp_path / "theirs", "open_clip")
    encoder, again = load_encoder(clip), load_encoder(tmp_path / "theirs")
    assert torch.allclose(encoder.texts(["red", "a square"]), again.texts(["red", "a square"]), atol=1e-6)
    described = read_config(tmp_path / "theirs")["model_cfg"]
    peer = open_clip("model").CLIP(**described).eval()
    peer.load_state_dict(load_file(tmp_path / "theirs" / "open_clip_model.safetensors"))
    ids = torch.zeros(1, described["text_cfg"]["context_length"], dtype=torch.long)
    found = encoder.tokenizer("a square").input_ids
    ids[0, : len(found)] = torch.tensor(found)
    with torch.no_grad():
        assert torch.allclose(peer.encode_text(ids, normalize=True), encoder.texts(["a square"]), atol=1e-5)


def test_a_model_of_ours_stays_padded_in_transformers_layout_and_open_clips_crop_is_told(tmp_path, caplog):
    clip = save_tiny_dual(tmp_path, "clip")
    (clip / "training_log.json").write_text("{}")
    export_dual(clip, tmp_path / "ours", "transformers")
    assert json.loads((tmp_path / "ours" / "preprocessor_config.json").read_text())["fit"] == "pad"
    export_dual(clip, tmp_path / "theirs", "open_clip")
    assert "was trained on padded images, which open_clip crops" in caplog.text


def test_pickled_weights_are_read_by_export_alone(open_clip, tmp_path):
    peer = save_tiny_open_clip(tmp_path / "theirs", open_clip("model").CLIP, train_tokenizer(TEXTS, 300, 77))
    (tmp_path / "theirs" / "open_clip_model.safetensors").unlink()
    state = {f"module.{name}": value for name, value in peer.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "theirs" / "epoch_3.pt")
    with pytest.raises(UserError, match=r"holds epoch_3.pt and no safetensors.*mllm clip export"):
        load_dual(tmp_path / "theirs")
    export_dual(tmp_path / "theirs", tmp_path / "ours", "transformers")
    assert load_dual(tmp_path / "ours")[0].logit_scale == peer.logit_scale
    clip = save_tiny_dual(tmp_path, "clip")
    weights = load_dual(clip)[0].state_dict()
    (clip / "model.safetensors").unlink()
    torch.save(weights, clip / "pytorch_model.bin")
    export_dual(clip, tmp_path / "safe", "transformers")
    found = load_dual(tmp_path / "safe")[0].state_dict()
    assert all(torch.equal(value, found[name]) for name, value in weights.items())
    torch.save({"weights": object()}, clip / "pytorch_model.bin")
    with pytest.raises(UserError, match="is no model with a tokenizer"):
        export_dual(clip, tmp_path / "worse", "transformers")


REFUSED = {
    "an image encoder of timm, 'vit_x'": {"vision_cfg": {"timm_model_name": "vit_x"}},
    "a ResNet of": {"vision_cfg": {"layers": [3, 4, 6, 3]}},
    "a text encoder of its own, 'roberta-base'": {"text_cfg": {"hf_model_name": "roberta-base"}},
    "a caption decoder": {"multimodal_cfg": {"layers": 2}},
    "vision_cfg has attentional_pool: true": {"vision_cfg": {"attentional_pool": True}},
    "text_cfg has no_causal_mask: true": {"text_cfg": {"no_causal_mask": True}},
    "model_cfg has init_logit_bias: -10": {"init_logit_bias": -10},
    "text_cfg has pool_type: 'last'": {"text_cfg": {"pool_type": "last"}},
    "model_cfg has no embed_dim": {"embed_dim": None},
}


@pytest.mark.parametrize("message", list(REFUSED))
def test_what_a_clip_cannot_be_is_refused_by_name(tmp_path, message):
    model = {"embed_dim": 16, "vision_cfg": {}, "text_cfg": {}} | REFUSED[message]
    model = {key: value for key, value in model.items() if value is not None}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    with pytest.raises(UserError, match=message):
        load_dual(tmp_path)
