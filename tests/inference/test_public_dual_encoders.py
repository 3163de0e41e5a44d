"""Public dual encoders of transformers: features, probabilities and pixels are those of their own classes."""

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from mllm.errors import UserError
from mllm.inference.dual_features import load_encoder
from mllm.media.decode import read_image
from mllm.model.dual_kinds import DUAL_KINDS, unpacked
from tests.helpers.dual_encoders import LENGTH, TEXTS, save_tiny_dual
from tests.helpers.tiny import save_image

FIT = {
    "align": None,
    "siglip2": None,
    "chinese_clip": "stretch",
    "siglip": "stretch",
    "vision-text-dual-encoder": "stretch",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    sizes = {"red": (255, 0, 0), "blue": (0, 0, 255)}
    paths = [root / f"{name}.png" for name in sizes]
    for path, colour, size in zip(paths, sizes.values(), ((19, 37), (40, 16)), strict=True):
        save_image(path, colour, size)
    noise = torch.randint(0, 256, (23, 31, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(root / "noise.png")
    return [*paths, root / "noise.png"]


@pytest.mark.parametrize("model_type", list(DUAL_KINDS))
def test_features_and_probabilities_are_the_classes_own(model_type, tmp_path, files):
    directory = save_tiny_dual(tmp_path, model_type)
    encoder = load_encoder(directory)
    peer, tokenizer = (
        AutoModel.from_pretrained(directory, dtype=torch.float32).eval(),
        AutoTokenizer.from_pretrained(directory),
    )
    processor = AutoImageProcessor.from_pretrained(directory, backend="pil")
    prepared = [processor(images=read_image(file), return_tensors="pt") for file in files]
    seen = {name: torch.cat([inputs[name] for inputs in prepared]) for name in prepared[0]}
    found = torch.stack([encoder.preparer(read_image(file)) for file in files])
    assert torch.allclose(
        unpacked(found)["pixel_values"] if encoder.kind.takes_patches else found, seen["pixel_values"], atol=1e-6
    )
    assert encoder.preparer.fit == FIT.get(model_type, "crop")

    siglip = model_type.startswith("siglip")
    texts = [text.lower() for text in TEXTS] if siglip else list(TEXTS)
    tokens = tokenizer(
        texts, padding="max_length" if siglip else True, truncation=True, max_length=LENGTH, return_tensors="pt"
    )
    inputs = {name: tokens[name] for name in (("input_ids",) if siglip else ("input_ids", "attention_mask"))}
    with torch.no_grad():
        output = peer(**seen, **inputs)
    images, found = encoder.images(files), encoder.texts(TEXTS)
    assert torch.allclose(images, output.image_embeds / output.image_embeds.norm(dim=-1, keepdim=True), atol=1e-5)
    assert torch.allclose(found, output.text_embeds / output.text_embeds.norm(dim=-1, keepdim=True), atol=1e-5)
    logits = output.logits_per_image
    assert torch.allclose(
        encoder.probabilities(images @ found.T), logits.sigmoid() if siglip else logits.softmax(-1), atol=1e-5
    )
    assert not torch.allclose(found[0], found[1], atol=1e-3)


def test_a_siglips_factor_has_no_bound(tmp_path):
    encoder = load_encoder(save_tiny_dual(tmp_path, "siglip"))
    encoder.model.logit_scale.fill_(4.7215)
    encoder.model.logit_bias.fill_(-16.5)
    found = encoder.probabilities(torch.tensor([[0.13, 0.15]]))[0].tolist()
    assert found == pytest.approx([0.131, 0.587], abs=1e-3) and encoder.factor == pytest.approx(112.34, abs=0.01)


def test_what_cannot_be_a_dual_encoder_is_refused_by_name(tmp_path, files):
    directory = save_tiny_dual(tmp_path, "align")
    with pytest.raises(UserError, match="steps of its own, beside which --fit crop has no meaning"):
        load_encoder(directory, "crop")
    with pytest.raises(UserError, match="steps of its own, beside which --fit pad has no meaning"):
        load_encoder(save_tiny_dual(tmp_path, "siglip2"), "pad")
    config = directory / "config.json"
    config.write_text(config.read_text().replace('"model_type": "align"', '"model_type": "blip-2"'))
    with pytest.raises(UserError, match="is of type blip-2; a dual encoder is one of: clip, siglip, siglip2"):
        load_encoder(directory)
    clip = save_tiny_dual(tmp_path, "clip")
    (clip / "model.safetensors").rename(clip / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"holds pytorch_model.bin and no safetensors.*mllm clip export"):
        load_encoder(clip)
