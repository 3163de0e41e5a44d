"""Held-out retrieval of a dual encoder."""

import torch
from torch.nn import functional as F
from transformers import CLIPModel

from mllm.contrastive.data import Pair, PairBatcher
from mllm.images.decode import read_image

CHUNK = 128


@torch.no_grad()
def retrieval_recall(
    model: CLIPModel, pairs: list[Pair], batcher: PairBatcher, ks: tuple[int, ...] = (1, 5)
) -> dict[str, float]:
    """Recall@k both ways: 1 for a query if any positive (same caption) is among its k nearest, averaged; plus chance."""
    model.eval()
    images, texts = [], []
    for start in range(0, len(pairs), CHUNK):
        chunk = pairs[start : start + CHUNK]
        batch = batcher.collate(chunk, [batcher.preparer(read_image(p.image)) for p in chunk])
        output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, pixel_values=batch.pixel_values)
        images.append(output.image_embeds)
        texts.append(output.text_embeds)
    model.train()
    image, text = F.normalize(torch.cat(images), dim=-1), F.normalize(torch.cat(texts), dim=-1)
    captions = list(dict.fromkeys(pair.caption for pair in pairs))
    first = {caption: next(i for i, p in enumerate(pairs) if p.caption == caption) for caption in captions}
    text = text[[first[caption] for caption in captions]]  # one query per different caption
    owner = torch.tensor([captions.index(pair.caption) for pair in pairs])
    similarity = image @ text.T  # [images, captions]
    positive = owner[:, None] == torch.arange(len(captions))[None, :]
    result = {"images": float(len(pairs)), "captions": float(len(captions))}
    for k in ks:
        for name, scores, hits in (
            ("image_to_text", similarity, positive),
            ("text_to_image", similarity.T, positive.T),
        ):
            top = scores.topk(min(k, scores.shape[1]), dim=1).indices
            result[f"{name}_recall@{k}"] = hits.gather(1, top).any(1).float().mean().item()
    result["chance_image_to_text_recall@1"] = 1 / len(captions)
    return result
