"""Retrieval of images by captions and of captions by images, scored as CLIP_benchmark scores it.

I different images, T different captions, P pairs of an image and a caption of it, E embedding width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from mllm.contrastive.data import PairBatcher
from mllm.contrastive.pairs import Pair
from mllm.inference.dual_features import DualEncoder

CHUNK = 128


@dataclass(frozen=True)
class Gallery:
    """The different images and captions of some pairs, in the order of their first place, and which belong together.

    image_of, caption_of: int64 [P], the image and the caption of each different pair.
    """

    images: list[Path | str]
    captions: list[str]
    image_of: torch.Tensor
    caption_of: torch.Tensor


def gallery(pairs: Sequence[Pair]) -> Gallery:
    """Merge the pairs of one image, which is a file or inside one, and those of one caption."""
    images = {image: n for n, image in enumerate(dict.fromkeys(pair.image for pair in pairs))}
    captions = {caption: n for n, caption in enumerate(dict.fromkeys(pair.caption for pair in pairs))}
    belonging = dict.fromkeys((images[pair.image], captions[pair.caption]) for pair in pairs)
    image_of, caption_of = torch.tensor(list(belonging)).T
    return Gallery(list(images), list(captions), image_of, caption_of)


def retrieval_recall(
    model: PreTrainedModel, pairs: list[Pair], batcher: PairBatcher, ks: tuple[int, ...] = (1, 5)
) -> dict[str, float]:
    """Measure recall@k both ways of a model that is being trained."""
    model.eval()
    result = pairs_recall(DualEncoder(model, batcher.tokenizer, batcher.preparer), pairs, ks)
    model.train()
    return result


def pairs_recall(encoder: DualEncoder, pairs: Sequence[Pair], ks: Sequence[int]) -> dict[str, float]:
    """Measure recall@k both ways, and chance: see `recall`. Each image and each caption is encoded once."""
    found = gallery(pairs)
    return recall(encoder.images(found.images), encoder.texts(found.captions), found, ks)


def recall(
    image_features: torch.Tensor, text_features: torch.Tensor, of: Gallery, ks: Sequence[int]
) -> dict[str, float]:
    """Measure recall@k of normalized features [I, E] and [T, E]: the share of queries with a positive among the k nearest.

    For an image the positives are all its captions, for a caption all its images, as in CLIP_benchmark. That has one image
    for each caption; here a caption that several images have is one query. Chance is that of a ranking at random.
    """
    result = {"images": float(len(of.images)), "captions": float(len(of.captions))}
    ways = (
        ("image_to_text", image_features, text_features, of.image_of, of.caption_of),
        ("text_to_image", text_features, image_features, of.caption_of, of.image_of),
    )
    for k in ks:
        for way, queries, gallery_features, query_of, answer_of in ways:
            result[f"{way}_recall@{k}"] = _share_found(queries, gallery_features, query_of, answer_of, k)
    for way, queries, gallery_features, query_of, _ in ways:
        result[f"chance_{way}_recall@1"] = len(query_of) / len(queries) / len(gallery_features)
    return result


def _share_found(
    queries: torch.Tensor, answers: torch.Tensor, query_of: torch.Tensor, answer_of: torch.Tensor, k: int
) -> float:
    # A pair as one number: which of the few found are positives is then looked up without a [queries, answers] matrix.
    positives = query_of * len(answers) + answer_of
    found = 0
    for start, rows in _chunks(queries):
        nearest = (rows @ answers.T).topk(min(k, len(answers)), dim=1).indices
        places = torch.arange(start, start + len(rows))[:, None] * len(answers) + nearest
        found += int(torch.isin(places, positives).any(1).sum())
    return found / len(queries)


def _chunks(features: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    return ((start, features[start : start + CHUNK]) for start in range(0, len(features), CHUNK))
