"""The Hugging Face LLaVA layout: what we export, transformers loads, with equal logits, ids and pixels."""

import random

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from mllm.checkpoint import ours as checkpoint
from mllm.checkpoint.llava import import_llava
from mllm.checkpoint.llava_export import export_llava
from mllm.checkpoint.start import build
from mllm.conversation.schema import ImagePart, Message, TextPart
from mllm.errors import UserError
from tests.helpers.connectors import CONNECTORS
from tests.helpers.tiny import tiny_settings


def settings(parts, encoder, prompt_format, fit):
    base = tiny_settings(parts, encoder, prompt_format)
    return base.model_copy(update={"image": base.image.model_copy(update={"fit": fit})})


def calibrate(model):
    features = 5 + 3 * torch.randn(4, 16, model.vision_encoder.width)
    model.projector.calibrate(features, model.language_model.get_input_embeddings().weight)


@pytest.mark.parametrize("encoder,fit", [("clip", "crop"), ("siglip", "stretch"), ("clip", "pad"), ("siglip", "pad")])
@pytest.mark.parametrize("prompt_format", ["vicuna_v1", "llama_3", "chatml", "native"])
def test_exported_model_and_processor_equal_ours(tiny_parts, tmp_path, encoder, fit, prompt_format):
    model, processor = build(settings(tiny_parts, encoder, prompt_format, fit))
    model.eval()
    # What calibration sets has no place in the layout, so it has to be folded into the layers.
    calibrate(model)
    image = Image.frombytes("RGB", (20, 12), random.Random(0).randbytes(20 * 12 * 3))
    messages = [
        Message(role="user", content=(ImagePart(), TextPart(text="what is this"))),
        Message(role="assistant", content="a cat"),
        Message(role="user", content="is it red"),
    ]
    prompt = processor.render(messages, [(12, 20)], generation=True)
    ids = torch.tensor([prompt.input_ids])
    pixels = processor.pixels(image)[None]
    export_llava(model, processor, tmp_path / "out")
    peer = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    peer_processor = AutoProcessor.from_pretrained(tmp_path / "out")
    content = [
        {
            "role": m.role,
            "content": [
                {"type": "image"} if p.type == "image" else {"type": "text", "text": p.text} for p in m.content
            ],
        }
        for m in messages
    ]
    text = peer_processor.apply_chat_template(content, add_generation_prompt=True)
    inputs = peer_processor(text=text, images=[image], return_tensors="pt", add_special_tokens=False)
    assert inputs["input_ids"][0].tolist() == list(prompt.input_ids)
    assert torch.allclose(inputs["pixel_values"].float(), pixels, atol=1e-5)
    with torch.no_grad():
        theirs = peer(**inputs).logits
        hidden = model.language_model.get_decoder()(
            inputs_embeds=model.embed_features(ids, [model.encode_images(pixels, prompt.visuals)])
        ).last_hidden_state
        ours = model.language_model.get_output_embeddings()(hidden)
    assert (ours - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("encoder,fit", [("clip", "crop"), ("siglip", "stretch"), ("clip", "pad")])
def test_an_exported_model_comes_back_with_equal_logits(tiny_parts, tmp_path, encoder, fit):
    model, processor = build(settings(tiny_parts, encoder, "chatml", fit))
    model.eval()
    prompt = processor.render([Message(role="user", content=(ImagePart(), TextPart(text="hello")))], [(12, 20)], True)
    ids, pixels = torch.tensor([prompt.input_ids]), torch.randn(1, 3, 16, 16)
    export_llava(model, processor, tmp_path / "out")
    import_llava(tmp_path / "out", tmp_path / "back", "chatml", fit)
    back, back_processor = checkpoint.load(tmp_path / "back")
    assert back_processor.preparer == processor.preparer
    with torch.no_grad():
        hidden = [
            m.language_model.get_decoder()(
                inputs_embeds=m.embed_features(ids, [m.encode_images(pixels, prompt.visuals)])
            )[0]
            for m in (model, back)
        ]
        logits = [m.language_model.get_output_embeddings()(h) for m, h in zip((model, back), hidden, strict=True)]
    assert torch.allclose(*logits, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [{"kind": "linear"}, {"shuffle": 2}, *({"kind": k, **CONNECTORS[k]} for k in CONNECTORS if "mlp2x" not in k)],
)
def test_what_the_layout_cannot_say_is_refused(tiny_parts, tmp_path, change):
    base = settings(tiny_parts, "clip", "chatml", "crop")
    model, processor = build(base.model_copy(update={"projector": base.projector.model_copy(update=change)}))
    has = change.get("kind", "mlp2x_gelu with shuffle 2")
    with pytest.raises(
        UserError, match=rf"two-layer projector .* has {has}.*: train with model\.projector\.kind=mlp2x_gelu"
    ):
        export_llava(model, processor, tmp_path / "out")
    assert not (tmp_path / "out").exists()
