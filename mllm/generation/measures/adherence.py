"""Whether pictures show what they were asked to, by the cosines of a dual encoder. N pictures, E embedding width."""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch

R_CANDIDATES = 100


def clip_score(pictures: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
    """[N]: 100 · max(cosine, 0) of each picture and its caption, as torchmetrics counts CLIPScore.

    Hessel et al. 2021 (arXiv:2104.08718) have the factor 2.5 in place of 100. A hundredth of its mean is CLIP-T, but for
    cosines below 0.
    """
    return 100 * (pictures * captions).sum(1).clamp(min=0)


def hits_among(
    pictures: torch.Tensor, captions: Sequence[str], features: Mapping[str, torch.Tensor], candidates: int, seed: int
) -> list[float]:
    """For each picture [E], 1.0 if its own caption is nearer than each of `candidates` - 1 others, else 0.0.

    The mean is R-precision. features: of every caption, by its words; the others are drawn from these by the seed and the
    picture's place. Captions that share their features beat nobody: a tie is a miss.
    """
    names = list(features)
    table = torch.stack([features[name] for name in names])
    hits = []
    for place, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        others = [number for number, name in enumerate(names) if name != caption]
        drawn = random.Random(f"{seed}/{place}").sample(others, min(candidates - 1, len(others)))
        own = (features[caption] * picture).sum()
        hits.append(float((table[drawn] @ picture < own).all()))
    return hits


def likeness_by_caption(
    pictures: torch.Tensor, captions: Sequence[str], real: torch.Tensor, real_captions: Sequence[str]
) -> list[float]:
    """CLIP-I: of each picture whose caption real images have, too, the mean cosine to these."""
    own: dict[str, list[int]] = defaultdict(list)
    for number, caption in enumerate(real_captions):
        own[caption].append(number)
    means = {caption: real[places].mean(0) for caption, places in own.items()}
    told = zip(pictures, captions, strict=True)
    return [(picture @ means[caption]).item() for picture, caption in told if caption in means]


def diversity(pictures: torch.Tensor, captions: Sequence[str]) -> float | None:
    """The mean over captions of 1 - cosine of two different pictures of the caption; None where none has two."""
    own: dict[str, list[int]] = defaultdict(list)
    for number, caption in enumerate(captions):
        own[caption].append(number)
    distances = []
    for places in own.values():
        count = len(places)
        if count > 1:
            table = pictures[places] @ pictures[places].T
            distances.append(1 - (table.sum() - table.diagonal().sum()).item() / (count * (count - 1)))
    return sum(distances) / len(distances) if distances else None
