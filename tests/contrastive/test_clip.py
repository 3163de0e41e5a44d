"""The small CLIP: its loss, its negatives, and a run from pairs to a directory that transformers reads."""

import json
import math

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPModel, CLIPVisionModel

from mllm.contrastive.loss import gathered, infonce_sum
from mllm.contrastive.pairs import read_pairs
from mllm.contrastive.run import train_clip
from mllm.errors import UserError
from tests.helpers.clip import settings


def loss_of(image, text, log_scale, describes):
    """The loss of features [B, E] on one rank, normalized as the task does it."""
    return infonce_sum(gathered(image, text), log_scale, describes).loss_sum


def test_loss_is_the_mean_of_both_cross_entropies_summed_over_pairs():
    torch.manual_seed(0)
    image, text, scale = torch.randn(5, 8), torch.randn(5, 8), torch.tensor(math.log(1 / 0.07))
    cosine = torch.tensor([[F.cosine_similarity(i, t, dim=0) for t in text] for i in image])
    rows = -torch.log_softmax(cosine / 0.07, 1).diagonal() - torch.log_softmax(cosine / 0.07, 0).diagonal()
    loss = loss_of(image, text, scale, torch.eye(5, dtype=torch.bool))
    assert loss.item() == pytest.approx(rows.sum().item() / 2, rel=1e-5)


def test_a_pair_whose_caption_fits_the_other_image_is_no_negative():
    torch.manual_seed(0)
    image, text, scale = torch.randn(3, 8), torch.randn(3, 8), torch.tensor(1.0)
    masked = torch.eye(3, dtype=torch.bool)
    masked[0, 1] = masked[1, 0] = True
    moved = text.clone().requires_grad_()
    loss_of(image[:2], moved[:2], scale, masked[:2, :2]).backward()
    assert moved.grad.abs().max() < 1e-6  # each of the two sees only itself, so the loss is flat
    assert loss_of(image, text, scale, masked) < loss_of(image, text, scale, masked & False)


def test_the_scale_of_logits_is_capped_at_100():
    image = torch.eye(2, 4)
    capped = loss_of(image, image.flip(0), torch.tensor(50.0), torch.eye(2, dtype=torch.bool))
    assert capped.item() == pytest.approx(200.0)


@pytest.mark.slow
def test_a_run_learns_to_tell_colours_apart_and_transformers_reads_it(pairs, tmp_path):
    final = train_clip(settings(pairs, tmp_path / "run", epochs=25))
    log = json.loads((final / "training_log.json").read_text())
    assert log["steps"] == 50 and log["pairs"] == 16
    assert log["heldout"]["image_to_text_recall@1"] == 1.0
    model, tokenizer = CLIPModel.from_pretrained(final), AutoTokenizer.from_pretrained(final)
    assert CLIPVisionModel.from_pretrained(final).config.patch_size == 8
    assert tokenizer("a red square").input_ids[-1] == model.config.text_config.eos_token_id


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run(pairs, tmp_path):
    losses = []
    for name in ("a", "b"):
        train_clip(settings(pairs, tmp_path / name, epochs=2))
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[0] == losses[1] and len(losses[0]) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"image": "a.png"}', r"pairs.jsonl:1: expected text in one of the fields caption, .*found the keys image"),
        ('{"image": "a.png", "caption": " "}', r"pairs.jsonl:1: the caption is empty"),
        ('{"image": "a.png", "caption": "x"}', r"at least two different captions"),
    ],
)
def test_bad_pairs_are_named_with_their_line(tmp_path, text, message):
    (tmp_path / "pairs.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        read_pairs(tmp_path / "pairs.jsonl", tmp_path)
