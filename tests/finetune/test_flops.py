"""The FLOPs formula against torch's own counter, on real forward and backward passes."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mllm.checkpoint.start import build
from mllm.conversation.schema import ImagePart, Message, Sample, TextPart
from mllm.data.collate import collate
from mllm.data.example import render_example
from mllm.data.packing import pack
from mllm.finetune.flops import UnitFlops, Work, causal_pairs, unit_flops
from mllm.model.settings import TrainableSettings
from mllm.model.trainable import apply_policy
from tests.helpers.tiny import save_image, tiny_settings

POLICIES = {
    "projector": {},
    "lora": {"language_model": "lora", "lora": {"rank": 4, "dropout": 0.0}},
    "projector and language model": {"language_model": "full"},
    "language model": {"projector": "frozen", "language_model": "full"},
    "upper layer": {
        "projector": "frozen",
        "language_model": "full",
        "token_embeddings": "frozen",
        "language_model_from_layer": 1,
    },
    "everything": {"language_model": "full", "vision_encoder": "full"},
}


@pytest.fixture
def sample(tmp_path):
    question = Message(role="user", content=(ImagePart(), TextPart(text="what is this")))
    image = save_image(tmp_path / "image.png")
    return Sample(id="a", images=(image,), messages=(question, Message(role="assistant", content="a red cat")))


def product_flops(into, a, b, *_, **__):
    return 2 * a[0] * a[1] * b[1]


# torch's table lacks the product that adds in place.
IN_PLACE = {torch.ops.aten.addmm_: product_flops}


def fail(error):
    raise error


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("encoder", ["clip", "siglip"])
def test_the_formula_counts_what_torch_counts(tiny_parts, sample, encoder, policy):
    model, processor = build(tiny_settings(tiny_parts, encoder))
    # transformers also computes SigLIP's pooling head, whose output isn't used and which counts nothing: have none.
    for module in model.vision_encoder.modules():
        if hasattr(module, "use_head"):
            module.use_head = False
    apply_policy(model, TrainableSettings.model_validate(POLICIES[policy]))
    batch = collate(pack([render_example(sample, processor, 400)], "none", 400), processor, fail)
    # Attention as plain products, so that the counter sees all of it: full squares, whatever the mask hides.
    model.attention_kernel = "mask"
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        model.train()(batch).backward()
    tokens = batch.input_ids.numel()
    counted = unit_flops(model).of(Work(1, tokens, tokens**2, batch.target_count))
    assert counted == pytest.approx(counter.get_total_flops(), rel=1e-9)


def test_layers_behind_the_feature_layer_and_their_heads_count_nothing(tiny_parts):
    model, _ = build(tiny_settings(tiny_parts, "siglip"))
    apply_policy(model, TrainableSettings())
    tiles = []
    for layer in (1, 2, 3):
        model.vision_encoder.feature_layer = layer
        tiles.append(unit_flops(model).tile)
    assert tiles[1] - tiles[0] == tiles[2] - tiles[1] > 0


def test_a_branch_sees_its_trunk_and_itself():
    assert causal_pairs([3]) == 6
    assert causal_pairs([4, 2, 1], [0, 4, 4]) == 10 + (3 + 8) + (1 + 4)
    assert UnitFlops(1, 10, 100, 1000).of(Work(2, 3, 4, 5)) == 5432
