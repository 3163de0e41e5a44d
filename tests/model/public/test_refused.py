"""What transformers' contract doesn't carry is refused in a sentence."""

import copy

import pytest
import torch
import transformers

import mllm
from mllm.conversation.schema import Message, VideoPart
from mllm.errors import ConversationRefusedError, UserError
from mllm.media.visual import Clip
from mllm.model.public import PublicModel, wrap
from mllm.model.public import carried as carried_module
from tests.helpers.public_models import WORDS, tiny

FILES = (
    "model/public",
    "checkpoint/public.py",
    "checkpoint/write.py",
    "inference/reading",
    "kernels/continued_rows.py",
    "kernels/overlaid_rows.py",
)


def test_no_family_has_a_name_in_the_code():
    names = transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    root = mllm.__path__[0]
    from pathlib import Path

    files = [
        file for name in FILES for file in (Path(root) / name, *(Path(root) / name).glob("*.py")) if file.is_file()
    ]
    texts = {file.name: file.read_text().lower() for file in files}
    assert len(texts) >= 8
    found = {(name, own) for own in (*names, "qwen", "gemma", "smolvlm") for name, text in texts.items() if own in text}
    assert not {(name, own) for name, own in found if len(own) > 3}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"is_encoder_decoder": True}, "is an encoder–decoder"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layers of linear_attention, whose state would pass"),
        ({"attention_chunk_size": 8}, "attends in chunks"),
    ],
    ids=["encoder_decoder", "linear", "chunks"],
)
def test_models_that_packed_rows_do_not_carry_are_refused(config, words):
    peer, _ = tiny("rows_and_columns")
    for name, value in config.items():
        owner = peer.config if name == "is_encoder_decoder" else peer.config.get_text_config()
        # Set past the class's own check of what a configuration may hold.
        owner.__dict__[name] = value
    with pytest.raises(UserError, match=words):
        PublicModel(peer)


def test_a_model_whose_layers_attend_past_the_registry_is_refused(monkeypatch):
    peer, _ = tiny("rows_and_columns")
    layer = type(peer.get_decoder().layers[1].self_attn)
    own = layer.forward

    def forward(self, hidden_states, **given):
        return (hidden_states, None) if self.layer_idx == 1 else own(self, hidden_states, **given)

    monkeypatch.setattr(layer, "forward", forward)
    with pytest.raises(UserError, match="1 of its 2 layers don't attend by transformers' registry"):
        PublicModel(peer)


def test_keywords_that_do_not_reach_the_attention_are_noticed(monkeypatch):
    peer, _ = tiny("rows_and_columns")
    layer = type(peer.get_decoder().layers[0].self_attn)
    own = layer.forward

    def forward(self, *inputs, packed_rows=None, **given):
        return own(self, *inputs, **given)

    monkeypatch.setattr(layer, "forward", forward)
    with pytest.raises(UserError, match="does not hand keywords on to its attention"):
        PublicModel(peer)


def test_attention_is_known_for_causal_or_not_without_computing(named):
    assert not named("rows_and_columns")[0].carried.has_own_mask and not named("several_axes")[0].carried.has_own_mask
    assert named("spans_and_windows")[0].carried.has_own_mask
    assert named("several_axes")[0].carried.position_axes == 3 and not carried_module._is_causal(
        lambda b, h, q, k: (k <= q) & (k > q - 5)
    )


def test_a_processor_without_a_template_or_with_other_ids_than_ours_is_refused():
    peer, processor = tiny("rows_and_columns")
    bare = copy.copy(processor)
    bare.chat_template = None
    with pytest.raises(UserError, match="has no chat template"):
        wrap(peer, bare)
    kind = type(processor)

    class Lower(kind):
        """Writes text of its own in front of what it is given."""

        def __call__(self, images=None, text=None, **given):
            return super().__call__(images=images, text=[f"no {own}" for own in text], **given)

    Lower.__name__ = kind.__name__
    changed = copy.copy(processor)
    changed.__class__ = Lower
    with pytest.raises(
        UserError, match=r"makes other tokens of a conversation with 0 image\(s\) than are made here: token 0"
    ):
        wrap(peer, changed)


def test_videos_are_refused_and_a_broken_image_is_blank(named, samples):
    _, processor = named("several_axes")
    with pytest.raises(ConversationRefusedError, match="give frames as images"):
        processor.render([Message(role="user", content=(VideoPart(),))], [Clip(4, 4, (0.0, 1.0))], generation=True)
    example = processor.render(samples[0].messages, [(24, 70)])
    blank = processor.blank(example.visuals[0], None)
    media = processor.prepare(example.visuals, [blank])
    assert blank[0].shape == (3, 24, 70) and int(media["image_grid_thw"].prod()) == len(media["pixel_values"])
    with pytest.raises(UserError, match=r"where .* were planned by their size"):
        processor.prepare(example.visuals, [[torch.zeros(3, 70, 70, dtype=torch.uint8)]])


def test_a_language_model_alone_is_no_model_of_images():
    config = transformers.LlamaConfig(vocab_size=32, **WORDS)
    with pytest.raises(UserError, match=r"get_encoder|image features"):
        PublicModel(transformers.LlamaForCausalLM(config))
