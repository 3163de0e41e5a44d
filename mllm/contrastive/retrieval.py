"""Held-out retrieval of a dual encoder."""

from collections.abc import Iterator, Sequence

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from mllm.contrastive.data import PairBatcher
from mllm.contrastive.pairs import Pair, checked
from mllm.media.decode import read_image

CHUNK = 128


@torch.no_grad()
def retrieval_recall(
    model: PreTrainedModel, pairs: list[Pair], batcher: PairBatcher, ks: tuple[int, ...] = (1, 5)
) -> dict[str, float]:
    """Measure recall@k both ways: 1 for a query if any positive (same caption) is among its k nearest; plus chance."""
    model.eval()
    images, texts = [], []
    for start in range(0, len(pairs), CHUNK):
        chunk = pairs[start : start + CHUNK]
        batch = batcher.collate(chunk, torch.stack([batcher.preparer(read_image(checked(p))) for p in chunk]))
        output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, pixel_values=batch.pixel_values)
        images.append(output.image_embeds)
        texts.append(output.text_embeds)
    model.train()
    image, text = F.normalize(torch.cat(images), dim=-1), F.normalize(torch.cat(texts), dim=-1)
    return recall(image, text, [pair.caption for pair in pairs], ks)


def recall(
    image_features: torch.Tensor, text_features: torch.Tensor, captions: Sequence[str], ks: Sequence[int]
) -> dict[str, float]:
    """Measure recall@k both ways of N pairs, features [N, E]; equal captions are one query and all are positives."""
    first: dict[str, int] = {}
    for index, caption in enumerate(captions):
        first.setdefault(caption, index)
    different = list(first)
    place = {caption: n for n, caption in enumerate(different)}
    owner = torch.tensor([place[caption] for caption in captions])  # [N]
    text = text_features[list(first.values())]  # one query per different caption
    result = {"images": float(len(captions)), "captions": float(len(different))}
    columns = torch.arange(len(different))
    for k in ks:
        hits = [
            (owner[start : start + CHUNK, None] == (rows @ text.T).topk(min(k, len(text)), dim=1).indices).any(1)
            for start, rows in _chunks(image_features)
        ]
        result[f"image_to_text_recall@{k}"] = torch.cat(hits).float().mean().item()
        hits = [
            (
                columns[start : start + CHUNK, None]
                == owner[(rows @ image_features.T).topk(min(k, len(owner)), dim=1).indices]
            ).any(1)
            for start, rows in _chunks(text)
        ]
        result[f"text_to_image_recall@{k}"] = torch.cat(hits).float().mean().item()
    result["chance_image_to_text_recall@1"] = 1 / len(different)
    return result


def _chunks(features: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    return ((start, features[start : start + CHUNK]) for start in range(0, len(features), CHUNK))
