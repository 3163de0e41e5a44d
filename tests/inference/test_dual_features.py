"""Image and text features of a dual encoder, by its directory alone."""

import logging

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPModel, SiglipModel

from mllm.checkpoint.dual import build_dual, image_processor, save_clip
from mllm.errors import UserError
from mllm.inference.dual_features import encode_readable, image_files, load_encoder
from mllm.media.decode import read_image
from mllm.model.dual_encoder import train_tokenizer
from mllm.model.dual_settings import ClipModelSettings
from tests.helpers.tiny import save_image

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 255, 0)}
TEXTS = ["a red square", "blue", "a green square of many words and more"]


@pytest.fixture(scope="module", params=["clip", "siglip"])
def directory(request, tmp_path_factory):
    """A dual encoder of random weights in transformers' layout, and three images beside it."""
    root = tmp_path_factory.mktemp(request.param)
    (root / "images").mkdir()
    for name, colour in COLOURS.items():
        save_image(root / "images" / f"{name}.png", colour)
    settings = ClipModelSettings(
        layout=request.param,
        image_size_px=16,
        vision_width=32,
        vision_layers=2,
        text_width=32,
        text_layers=1,
        embedding_width=32,
        vocabulary_size=300,
        text_length_tokens=12,
    )
    tokenizer = train_tokenizer(TEXTS, 300, 12, pads_to_full_length=request.param == "siglip")
    torch.manual_seed(0)
    model = build_dual(settings, tokenizer, learns_bias=request.param == "siglip")
    save_clip(root / "model", model, model.state_dict(), tokenizer, image_processor(settings))
    return root


def test_features_are_transformers_own_normalized(directory):
    encoder, files = load_encoder(directory / "model"), image_files(directory / "images")
    peer_class = SiglipModel if encoder.is_siglip else CLIPModel
    peer = peer_class.from_pretrained(directory / "model", dtype=torch.float32).eval()
    tokens = AutoTokenizer.from_pretrained(directory / "model")(
        TEXTS[:2], padding="max_length" if encoder.is_siglip else True, return_tensors="pt"
    )
    pixels = torch.stack([encoder.preparer(read_image(file)) for file in files])
    with torch.no_grad():
        images = F.normalize(peer.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
        texts = F.normalize(peer.get_text_features(**tokens).pooler_output, dim=-1)
    assert torch.allclose(encoder.images(files), images, atol=1e-6)
    assert torch.allclose(encoder.texts(TEXTS[:2]), texts, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())


def test_probabilities_are_the_models_own(directory):
    encoder = load_encoder(directory / "model")
    cosines = torch.tensor([[0.5, -0.25], [0.1, 0.1]])
    found = encoder.probabilities(cosines)
    if encoder.is_siglip:
        assert torch.allclose(found, torch.sigmoid(10 * cosines - 10), atol=1e-5)
    else:
        assert torch.allclose(found, (cosines / 0.07).softmax(-1), atol=1e-5)


def test_an_unreadable_image_is_skipped_with_its_reason_and_a_long_text_counted(directory, tmp_path, caplog):
    encoder, files = load_encoder(directory / "model"), image_files(directory / "images")
    (tmp_path / "broken.png").write_bytes(b"no image")
    skipped = []
    ((kept, features),) = encode_readable(
        encoder, [*files, tmp_path / "broken.png"], lambda path, reason: skipped.append((path.name, reason))
    )
    assert kept == files and torch.equal(features, encoder.images(files))
    ((name, reason),) = skipped
    assert name == "broken.png" and "broken.png" in reason
    with caplog.at_level(logging.WARNING):
        encoder.texts([TEXTS[0], "word " * 40])
    assert "1 of 2 texts are longer than 12 tokens" in caplog.text
    with pytest.raises(UserError, match="text 2 of 2 is empty"):
        encoder.texts(["a", " "])
