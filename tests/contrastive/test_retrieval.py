"""recall@k by CLIP_benchmark's rule: an image is a file, and all its captions are right."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mllm.contrastive.pairs import Pair
from mllm.contrastive.retrieval import gallery, pairs_recall, recall

IMAGES, CAPTIONS = 1000, 5


def coco():
    """1,000 images of five captions each, an image's captions apart from one another."""
    return [Pair(Path(f"{n % IMAGES}.jpg"), f"caption {n}") for n in range(IMAGES * CAPTIONS)]


def recall_at_k(scores, positives, k):
    """CLIP_benchmark's rule: true positives among the k nearest over positives, of which its recall asks whether any is."""
    nearest = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.topk(k, dim=1).indices, True)
    return (((nearest & positives).sum(1) / positives.sum(1)) > 0).double().mean().item()


def test_recall_is_clip_benchmarks_where_images_have_five_captions():
    torch.manual_seed(0)
    pairs = coco()
    of = gallery(pairs)
    image = F.normalize(torch.randn(IMAGES, 32), dim=-1)
    text = F.normalize(image[of.image_of] + 0.3 * torch.randn(len(pairs), 32), dim=-1)
    positives = torch.zeros(len(pairs), IMAGES, dtype=torch.bool)
    positives[of.caption_of, of.image_of] = True
    found = recall(image, text, of, [1, 5])
    for k in (1, 5):
        expected = {
            "text_to_image": recall_at_k(text @ image.T, positives, k),
            "image_to_text": recall_at_k(image @ text.T, positives.T, k),
        }
        for way, value in expected.items():
            assert found[f"{way}_recall@{k}"] == pytest.approx(value, abs=1e-9) and 0.1 < value < 1.0
    assert found["images"] == IMAGES and found["captions"] == len(pairs)
    assert found["chance_image_to_text_recall@1"] == found["chance_text_to_image_recall@1"] == 1 / IMAGES


def test_a_perfect_model_has_100_percent_both_ways():
    of = gallery(coco())
    image = F.normalize(torch.randn(IMAGES, 32, generator=torch.Generator().manual_seed(0)), dim=-1)
    found = recall(image, image[of.image_of], of, [1])
    assert found["text_to_image_recall@1"] == found["image_to_text_recall@1"] == 1.0


def test_equal_captions_are_one_query_whose_every_image_is_right():
    pairs = [
        Pair(Path(name), caption) for name, caption in (("1", "a"), ("2", "a"), ("3", "b"), ("3", "c"), ("3", "b"))
    ]
    of = gallery(pairs)
    assert of.images == [Path("1"), Path("2"), Path("3")] and of.captions == ["a", "b", "c"]
    image, text = torch.eye(3)[[0, 0, 1]], torch.eye(3)
    found = recall(image, text, of, [1, 2])
    assert found["image_to_text_recall@1"] == 1.0  # both of "a" find it; the third finds "b", which is one of its two
    assert found["text_to_image_recall@1"] == 2 / 3 and found["chance_image_to_text_recall@1"] == 4 / 9


def test_each_image_and_caption_is_encoded_once():
    asked = []

    class Encoder:
        def images(self, paths):
            asked.append([path.name for path in paths])
            return torch.eye(2)

        def texts(self, texts):
            asked.append(list(texts))
            return torch.eye(2)

    pairs = [Pair(Path("one.png"), "x"), Pair(Path("two.png"), "y"), Pair(Path("one.png"), "x")]
    assert pairs_recall(Encoder(), pairs, [1])["text_to_image_recall@1"] == 1.0
    assert asked == [["one.png", "two.png"], ["x", "y"]]
