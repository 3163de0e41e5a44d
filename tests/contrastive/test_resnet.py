"""A ResNet as the image side: trained, read by transformers and by the commands, exact in chunks, refused elsewhere."""

import json

import pytest
import torch
from transformers import AutoTokenizer, VisionTextDualEncoderModel

from mllm.checkpoint.dual import build_dual
from mllm.checkpoint.start import build, load_processor
from mllm.cli import build_parser
from mllm.contrastive.run import _build_batcher
from mllm.contrastive.settings import ContrastiveSettings
from mllm.contrastive.task import ContrastiveTask
from mllm.errors import UserError
from mllm.inference.dual_features import load_encoder
from mllm.model.dual_encoder import tokenize
from mllm.model.settings import ModelSettings
from mllm.settings import validate_settings
from tests.helpers.clip import train, values_of

RESNET = {"model__layout": "resnet", "model__vision_layers": 3, "model__patch_size_px": 8}


def resnet(pairs, run_dir, **changes):
    return values_of(pairs, run_dir, **(RESNET | changes))


@pytest.mark.slow
def test_a_resnet_learns_classifies_and_is_read_by_transformers(pairs, tmp_path, capsys, tiny_parts):
    final = train(resnet(pairs, tmp_path / "run", train__epochs=30))
    log = json.loads((final / "training_log.json").read_text())
    assert log["heldout"]["image_to_text_recall@1"] == 1.0
    assert json.loads((final / "config.json").read_text())["architectures"] == ["VisionTextDualEncoderModel"]

    model, info = VisionTextDualEncoderModel.from_pretrained(final, output_loading_info=True, dtype=torch.float32)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    encoder, pixels = load_encoder(tmp_path / "run"), torch.randn(2, 3, 16, 16)
    pooled = model.eval().vision_model(pixels).pooler_output.flatten(1)
    image = torch.nn.functional.normalize(model.visual_projection(pooled), dim=-1)
    assert torch.allclose(encoder.pixels_to_features(pixels), image, atol=1e-5)
    ids, mask = tokenize(AutoTokenizer.from_pretrained(final), ["a red square", "a blue square"])
    text = model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
    text = torch.nn.functional.normalize(text, dim=-1)
    assert torch.allclose(encoder.texts(["a red square", "a blue square"]), text, atol=1e-5)

    picture = pairs.parent / "blue.png"
    classify = ["clip", "classify", tmp_path / "run", picture, "--classes", "a red square,a blue square"]
    options = build_parser().parse_args([*map(str, classify), "--template", "{}"])
    options.run(options)
    assert f"{picture}: a blue square" in capsys.readouterr().out

    parts = {"vision_encoder": {"path": str(final)}, "language_model": {"path": str(tiny_parts / "lm")}}
    settings = validate_settings(ModelSettings, parts | {"prompt_format": "chatml"}, "test")
    for use in (build, load_processor):
        with pytest.raises(UserError, match="is a ResNet; features come from the layers of a ViT"):
            use(settings)


def test_a_resnets_gradients_by_grad_cache_are_those_of_the_full_batch(pairs, tmp_path):
    checked = validate_settings(ContrastiveSettings, resnet(pairs, tmp_path), "test")
    batcher, _ = _build_batcher(checked)
    torch.manual_seed(0)
    model = build_dual(checked.model, batcher.tokenizer, False).train()
    found = []
    for chunk in (None, 3):
        model.zero_grad()
        task = ContrastiveTask(batcher, "infonce", chunk)
        for micro_batch in task.window(0, 0, 1).micro_batches:
            task.loss(model, micro_batch).loss_sum.backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters()})
    whole, cached = found
    largest = max(g.abs().max() for g in whole.values())
    assert largest > 0 and all((cached[n] - g).abs().max() < 1e-4 * largest for n, g in whole.items())


def test_the_stages_share_blocks_and_the_last_has_a_feature_a_patch(pairs, tmp_path):
    sizes = {"model__image_size_px": 32, "model__patch_size_px": 16, "model__vision_width": 128}
    checked = validate_settings(ContrastiveSettings, resnet(pairs, tmp_path, **sizes, model__vision_layers=4), "test")
    model = build_dual(checked.model, _build_batcher(checked)[0].tokenizer, False)
    config = model.config.vision_config
    assert (config.hidden_sizes, config.depths) == ([32, 64, 128], [1, 1, 2])
    assert model.vision_model(torch.zeros(1, 3, 32, 32)).last_hidden_state.shape == (1, 128, 2, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__patch_size_px": 4}, "patch_size_px 4 must be a power of two from 8"),
        ({"model__vision_width": 48}, "vision_width 48 must be a multiple of 64"),
        ({"model__vision_layers": 1}, "vision_layers 1 must be 2 at least"),
        ({"model__image_encoder": "some/vit"}, "image_encoder takes a ViT"),
        ({"loss__kind": "sigmoid"}, "set model.layout: siglip"),
    ],
)
def test_sizes_that_no_resnet_has_are_one_clear_line(pairs, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        validate_settings(ContrastiveSettings, resnet(pairs, tmp_path, **changes), "test")
