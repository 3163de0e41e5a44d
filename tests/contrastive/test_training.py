"""Losses, chunks, ranks and layouts of contrastive training."""

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPModel, SiglipModel

from mllm.checkpoint.dual import build_dual, load_dual
from mllm.checkpoint.start import build
from mllm.contrastive.data import BOILERPLATE, spoil_captions
from mllm.contrastive.loss import gathered, infonce_sum, logit_factor, multi_positive_sum, sigmoid_sum
from mllm.contrastive.pairs import Pair
from mllm.contrastive.run import _build_batcher
from mllm.contrastive.settings import CaptionNoiseSettings, ContrastiveSettings
from mllm.contrastive.task import ContrastiveTask
from mllm.errors import UserError
from mllm.model.dual_encoder import text_mask, tokenize, too_long
from mllm.model.settings import ModelSettings
from mllm.settings import validate_settings
from tests.helpers.clip import batcher_of, settings, train, values_of
from tests.helpers.launches import launch
from tests.helpers.runs import metrics, series

KINDS = ["infonce", "multi_positive", "sigmoid"]
# What a rank could do otherwise than one process.
EVERYTHING = {
    "model__patch_dropout": 0.5,
    "data__augment": {"kinds": ["random_resized_crop", "color_jitter"]},
    "data__prompts": {"share": 0.5},
    "optim__layer_decay_vision_encoder": 0.5,
    "train__gradient_checkpointing": True,
    "average_decay": 0.9,
    "eval": {},
}


def some_features(count=6, width=8):
    torch.manual_seed(0)
    return torch.randn(count, width), torch.randn(count, width), torch.tensor(2.0), torch.tensor([-3.0])


def nothing(count=6):
    return torch.zeros(count, count, dtype=torch.bool)


def test_losses_equal_open_clips():
    found = importlib.util.find_spec("open_clip")
    if found is None:
        pytest.skip("open_clip_torch is not installed")
    # Its package imports torchvision; the losses are one file that doesn't.
    spec = importlib.util.spec_from_file_location("open_clip_loss", Path(found.origin).parent / "loss.py")
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    image, text, scale, bias = some_features(32, 16)
    normal = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    mine = infonce_sum(gathered(image, text), scale, nothing(32)).loss_sum / 32
    assert mine.item() == pytest.approx(theirs.ClipLoss()(*normal, scale.exp()).item(), abs=1e-6)
    mine = sigmoid_sum(gathered(image, text), scale, bias, nothing(32)).loss_sum / 32
    assert mine.item() == pytest.approx(theirs.SigLipLoss()(*normal, scale.exp(), bias).item(), abs=1e-6)


def test_a_loss_that_ignores_nothing_is_clips_whatever_the_captions(pairs, tmp_path):
    batcher = batcher_of(pairs, tmp_path, loss__ignore="none")
    torch.manual_seed(0)
    model = build_dual(settings(pairs, tmp_path, 1).model, batcher.tokenizer, False)
    (micro_batch,) = ContrastiveTask(batcher).window(0, 0, 1).micro_batches
    found = ContrastiveTask(batcher).loss(model, micro_batch)
    batch = micro_batch.inputs.pairs
    output = model(batch.input_ids, batch.pixel_values, text_mask(model, batch.attention_mask))
    logits = math.e**model.logit_scale * F.normalize(output.text_embeds) @ F.normalize(output.image_embeds).T
    own = torch.arange(8)
    expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    assert found.loss_sum.item() / 8 == pytest.approx(expected.item(), abs=1e-6)
    assert found.sums["batch_accuracy"] == (logits.T.argmax(1) == own).sum()
    ignoring = ContrastiveTask(batcher_of(pairs, tmp_path))
    (micro_batch,) = ignoring.window(0, 0, 1).micro_batches
    assert ignoring.loss(model, micro_batch).loss_sum < found.loss_sum


def test_sigmoid_loss_asks_a_question_a_pair_and_leaves_out_the_ignored():
    image, text, scale, bias = some_features()
    ignored = nothing()
    ignored[0, 1] = True
    expected = 0.0
    for i in range(6):
        for j in range(6):
            z = math.exp(2.0) * F.cosine_similarity(image[i], text[j], dim=0).item() - 3.0
            expected += 0.0 if (i, j) == (0, 1) else math.log1p(math.exp(-z if i == j else z))
    loss = sigmoid_sum(gathered(image, text), scale, bias, ignored).loss_sum
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_multi_positive_loss_is_the_mean_over_a_rows_positives():
    image, text, scale, _ = some_features()
    positive = torch.eye(6, dtype=torch.bool)
    positive[0, 3] = positive[3, 0] = True
    expected = 0.0
    for a, b in ((image, text), (text, image)):
        log_p = (math.exp(2.0) * F.normalize(a, dim=1) @ F.normalize(b, dim=1).T).log_softmax(1)
        expected -= sum(log_p[i][positive[i]].mean().item() for i in range(6)) / 2
    features = gathered(image, text)
    assert multi_positive_sum(features, scale, positive, positive).loss_sum.item() == pytest.approx(expected, rel=1e-5)
    one, other = infonce_sum(features, scale, nothing()), multi_positive_sum(features, scale, nothing(), nothing())
    assert other.loss_sum.item() == pytest.approx(one.loss_sum.item()) and other.hits == one.hits


def test_a_scale_beyond_its_bound_can_only_come_back():
    log_scale = torch.tensor(6.0, requires_grad=True)
    factor = logit_factor(log_scale)
    assert factor.item() == pytest.approx(100.0)
    (up,) = torch.autograd.grad(-factor, log_scale, retain_graph=True)
    (down,) = torch.autograd.grad(factor, log_scale)
    assert up == 0 and down > 0


def test_the_gradient_of_all_ranks_decides_whether_a_scale_at_its_bound_moves(monkeypatch):
    log_scale = torch.tensor(6.0, requires_grad=True)
    for others, passes in ((500.0, True), (50.0, False)):
        monkeypatch.setattr("mllm.contrastive.loss.sum_over_ranks", lambda own, others=others: own + others)
        (own,) = torch.autograd.grad(-logit_factor(log_scale), log_scale)
        assert own.item() == pytest.approx(-100.0 if passes else 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_by_grad_cache_are_those_of_the_full_batch(pairs, tmp_path, kind, dtype):
    layout = "siglip" if kind == "sigmoid" else "clip"
    values = values_of(pairs, tmp_path, model__layout=layout, model__embedding_width=64, loss__kind=kind)
    checked = validate_settings(ContrastiveSettings, values, "test")
    batcher, _ = _build_batcher(checked)
    torch.manual_seed(0)
    model = build_dual(checked.model, batcher.tokenizer, kind == "sigmoid")
    results = []
    for chunk_size in (None, 3):
        task = ContrastiveTask(batcher, kind, chunk_size)
        window = task.window(0, 0, 1)
        model.zero_grad()
        total = 0.0
        for micro_batch in window.micro_batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                loss = task.loss(model, micro_batch).loss_sum
            loss.backward()
            total += loss.item()
        results.append((total, {n: p.grad.clone() for n, p in model.named_parameters()}, len(window.micro_batches)))
    (whole, gradients, one), (parts, cached, chunks) = results
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    assert (one, chunks) == (1, 3) and parts == pytest.approx(whole, rel=tolerance)
    largest = max(g.abs().max() for g in gradients.values())
    assert all((cached[n] - g).abs().max() < tolerance * largest for n, g in gradients.items())
    assert cached["logit_scale"].abs() > 0 and whole > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "grad_cache", "layout"),
    [
        ("infonce", False, EVERYTHING),
        ("sigmoid", True, {"model__layout": "siglip", "model__embedding_width": 64}),
        ("infonce", True, {"model__layout": "resnet", "model__vision_layers": 3}),
    ],
    ids=["clip", "siglip", "resnet"],
)
def test_two_ranks_train_as_one(pairs, tmp_path, kind, grad_cache, layout):
    if "eval" in layout:
        layout = layout | {"eval": {"every_steps": 2, "pairs": str(pairs)}}
    two = values_of(pairs, tmp_path / "two", loss__kind=kind, loss__grad_cache=grad_cache, **layout)
    train(values_of(pairs, tmp_path / "one", loss__kind=kind, **layout))
    if grad_cache:
        two["train"]["micro_batch_size"] = 3
    launch(two, tmp_path, ranks=2, stage=2, script="train/contrastive.py")
    (ids_a, loss_a, norm_a), (ids_b, loss_b, norm_b) = series(tmp_path / "one"), series(tmp_path / "two")
    assert ids_a == ids_b and len(ids_a) == 4
    # The first step is the losses and gradients themselves; Adam then enlarges what rounding makes of small ones.
    assert loss_b[0] == pytest.approx(loss_a[0], rel=1e-6) and norm_b[0] == pytest.approx(norm_a[0], rel=1e-5)
    assert loss_b == pytest.approx(loss_a, rel=1e-4) and norm_b == pytest.approx(norm_a, rel=1e-3)
    if "eval" in layout:
        found = [[step.get("text_to_image_recall@1") for step in metrics(tmp_path / n)] for n in ("one", "two")]
        assert found[0] == found[1] and [value is None for value in found[0]] == [True, False, True, False]
    logs = [json.loads((tmp_path / n / "final" / "training_log.json").read_text()) for n in ("one", "two")]
    assert logs[0]["heldout"] == logs[1]["heldout"] and logs[0]["parameters"] == logs[1]["parameters"]


def test_accumulation_that_would_change_the_loss_is_refused(pairs, tmp_path):
    with pytest.raises(UserError, match=r"micro_batch_size 4 of 8 pairs a rank.*grad_cache: true"):
        train(values_of(pairs, tmp_path, train__micro_batch_size=4))
    with pytest.raises(UserError, match=r"can't be shared evenly by 3 ranks"):
        checked = validate_settings(ContrastiveSettings, values_of(pairs, tmp_path), "test")
        ContrastiveTask(_build_batcher(checked)[0]).window(0, 0, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss__kind": "sigmoid"}, "set model.layout: siglip"),
        ({"model__lock_image": True}, "lock_image needs image_encoder"),
        ({"model__layout": "siglip"}, "embedding_width 16 must be vision_width 64"),
        ({"train__neftune_alpha": 5.0}, "are for language models"),
        ({"optim__lr_projector": 1e-3}, "lr_projector is for language models"),
        ({"model__init_from": "a", "model__image_encoder": "b"}, "remove one of them"),
        ({"eval": {"every_steps": 2}}, "give pairs, for recall, or folder"),
        ({"loss__grad_cache": True}, "grad_cache needs train.micro_batch_size"),
        ({"data__noise": {"mismatched": 0.7, "truncated": 0.7}}, "is over 1"),
        ({"train__global_batch_size": 1}, "global_batch_size 1: contrastive training of 16 pairs needs 2"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(pairs, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train(values_of(pairs, tmp_path, **changes))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["clip", "siglip"])
def test_the_image_side_of_a_run_is_locked_in_the_next_and_sees_for_a_language_model(
    pairs,
    tmp_path,
    tiny_parts,
    layout,
):
    sizes = {"model__layout": layout, "model__embedding_width": 64}
    first = train(values_of(pairs, tmp_path / "first", loss__kind="multi_positive", **sizes))
    locked = {"model__image_encoder": str(first), "model__lock_image": True}
    second = train(values_of(pairs, tmp_path / "second", **sizes, **locked))
    before, after = (load_dual(directory)[0] for directory in (first, second))
    for (name, old), (_, new) in zip(before.named_parameters(), after.named_parameters(), strict=True):
        if name.startswith("vision_model."):
            assert torch.equal(old, new), name
    assert not torch.equal(before.text_model.final_layer_norm.weight, after.text_model.final_layer_norm.weight)
    parts = {"vision_encoder": {"path": str(second)}, "language_model": {"path": str(tiny_parts / "lm")}}
    model, _ = build(validate_settings(ModelSettings, parts | {"prompt_format": "chatml"}, "test"))
    features = model.vision_encoder(torch.zeros(1, 3, 16, 16))
    expected = after.vision_model(torch.zeros(1, 3, 16, 16), output_hidden_states=True).hidden_states[-2]
    assert torch.allclose(features, expected[:, -4:], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["clip", "siglip"])
def test_transformers_gives_the_trained_models_logits(pairs, tmp_path, layout):
    kind = "sigmoid" if layout == "siglip" else "infonce"
    values = values_of(pairs, tmp_path, model__layout=layout, model__embedding_width=64, loss__kind=kind)
    final = train(values)
    cls = SiglipModel if layout == "siglip" else CLIPModel
    ids, mask = tokenize(AutoTokenizer.from_pretrained(final), ["a red square", "a blue square"])
    pixels = torch.randn(2, 3, 16, 16)
    output = cls.from_pretrained(final, dtype=torch.float32)(input_ids=ids, attention_mask=mask, pixel_values=pixels)
    features = gathered(output.image_embeds, output.text_embeds)
    model = load_dual(tmp_path)[0]
    logits = logit_factor(model.logit_scale) * features.image @ features.text.T + getattr(model, "logit_bias", 0.0)
    assert torch.allclose(output.logits_per_image, logits, atol=1e-5)


def test_captions_are_spoilt_in_the_shares_asked_for_and_the_same_way_each_time():
    clean = [Pair(Path(f"{n}.png"), f"one two three number{n}") for n in range(20)]
    noise = CaptionNoiseSettings(mismatched=0.25, truncated=0.2, boilerplate=0.15)
    spoilt, counts = spoil_captions(clean, noise, seed=1)
    changed = [(a.caption, b.caption) for a, b in zip(clean, spoilt, strict=True) if a != b]
    assert counts == {"mismatched": 5, "truncated": 4, "boilerplate": 3} and len(changed) == 12
    assert sum(b == "one two" for _, b in changed) == 4 and sum(b in BOILERPLATE for _, b in changed) == 3
    assert spoil_captions(clean, noise, seed=1)[0] == spoilt != spoil_captions(clean, noise, seed=2)[0]
    alike = [Pair(Path(f"{n}.png"), "circle") for n in range(4)]
    noise = CaptionNoiseSettings(mismatched=0.5, truncated=0.5)
    assert spoil_captions(alike, noise, seed=1) == (alike, {"mismatched": 0, "truncated": 0, "boilerplate": 0})


def test_the_text_feature_is_read_at_the_end_so_the_last_word_counts(pairs, tmp_path):
    batcher, _ = _build_batcher(validate_settings(ContrastiveSettings, values_of(pairs, tmp_path), "test"))
    torch.manual_seed(0)
    model = build_dual(settings(pairs, tmp_path, 1).model, batcher.tokenizer, False).eval()
    ids, mask = tokenize(batcher.tokenizer, ["square red blue", "square red green", "square red black"])
    features = model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
    assert torch.pdist(features).min() > 1e-3


def test_captions_that_lose_their_end_are_counted(pairs, tmp_path):
    batcher, _ = _build_batcher(validate_settings(ContrastiveSettings, values_of(pairs, tmp_path), "test"))
    texts = ["a red square", "a red square " * 20]
    assert too_long(batcher.tokenizer, texts) == 1
    assert tokenize(batcher.tokenizer, texts)[0].shape[1] == 12


@pytest.mark.parametrize("layout", ["clip", "siglip"])
def test_texts_are_masked_as_transformers_masks_them(pairs, tmp_path, layout):
    values = values_of(pairs, tmp_path, model__layout=layout, model__embedding_width=64)
    checked = validate_settings(ContrastiveSettings, values, "test")
    batcher, _ = _build_batcher(checked)
    model = build_dual(checked.model, batcher.tokenizer, False).eval()
    batch = batcher.batch(0, 0, 1)
    lengths = torch.randint(2, batch.input_ids.shape[1], (len(batch.input_ids), 1))
    mask = (torch.arange(batch.input_ids.shape[1]) < lengths).long()
    with torch.no_grad():
        texts = [model.text_model(batch.input_ids, given)[0] for given in (mask, text_mask(model, mask))]
    assert torch.allclose(*texts, atol=1e-6)
