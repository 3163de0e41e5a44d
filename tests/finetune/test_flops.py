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
from mllm.model.settings import TrainableSettings, VisionEncoderSettings
from mllm.model.trainable import apply_policy
from tests.helpers.connectors import CONNECTORS
from tests.helpers.encoders import save_tiny_encoder
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


def grouped_flops(given, inputs, weight, *more, **_):
    """Of the gradients that are asked for: of a convolution's inputs, which pixels have none of, and of its weight."""
    asked = more[-1]
    return (asked[0] + asked[1]) * 2 * given[0] * given[1] * given[2] * given[3] * weight[1] * weight[2] * weight[3]


# torch's table lacks the product that adds in place, and the groups of a convolution's gradient.
IN_PLACE = {torch.ops.aten.addmm_: product_flops}
GROUPED = {torch.ops.aten.convolution_backward: grouped_flops}


def fail(error):
    raise error


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    "encoder,kind", [("clip", "mlp2x_gelu"), *(("siglip", kind) for kind in CONNECTORS if kind != "mlp3x_gelu")]
)
def test_the_formula_counts_what_torch_counts(tiny_parts, sample, encoder, kind, policy):
    check_formula(tiny_settings(tiny_parts, encoder, kind=kind, **CONNECTORS[kind]), sample, policy)


@pytest.mark.parametrize("policy", ["projector", "everything"])
@pytest.mark.parametrize("family", ["mlcd", "aimv2_native", "dinov2_with_registers", "dinov3", "internvit"])
def test_it_counts_prefix_tokens_and_tiles_of_another_size(tiny_parts, tmp_path, sample, family, policy):
    encoder = VisionEncoderSettings(path=save_tiny_encoder(tmp_path, family), image_size_px=24)
    check_formula(tiny_settings(tiny_parts).model_copy(update={"vision_encoder": encoder}), sample, policy)


def check_formula(settings, sample, policy):
    model, processor = build(settings)
    # transformers also computes SigLIP's pooling head, whose output isn't used and which counts nothing: have none.
    for module in model.vision_encoder.modules():
        if hasattr(module, "use_head"):
            module.use_head = False
    apply_policy(model, TrainableSettings.model_validate(POLICIES[policy]))
    batch = collate(pack([render_example(sample, processor, 400)], "none", 400), processor, fail)
    # Attention as plain products, so that the counter sees all of it: full squares, whatever the mask hides.
    model.attention_kernel = "mask"
    own = IN_PLACE | (GROUPED if settings.projector.kind == "c_abstractor" else {})
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=own) as counter:
        model.train()(batch).backward()
    tokens = batch.input_ids.numel()
    counted = unit_flops(model).of(Work(1, tokens, tokens**2, batch.target_count))
    assert counted + once_flops(model) == pytest.approx(counter.get_total_flops(), rel=1e-9)


def once_flops(model):
    """What a resampler computes of its queries, once for all tiles."""
    if model.projector_settings.kind != "resampler":
        return 0
    query = model.projector.attention.query
    learns = query.weight.requires_grad
    return 2 * model.geometry.tokens_per_tile * query.in_features * query.out_features * (1 + 2 * learns)


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
