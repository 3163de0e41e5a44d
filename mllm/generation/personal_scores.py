"""How well a concept was learned: likeness to its images and adherence to prompts, beside what anyone could have.

N pictures, E embedding width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mllm.generation.judging.drawing import Paint, draw_all
from mllm.generation.judging.drawing import PictureFolder as Folder
from mllm.inference.dual_features import DualEncoder

CONCEPT, WITHOUT, INSTEAD, IMAGES = "the concept", "prompt only", "words in its place", "training images only"


@dataclass(frozen=True)
class Personal:
    """One row of the scores.

    likeness: CLIP-I, the mean cosine of pictures of the bare word to the training images. adherence: CLIP-T, the mean
    cosine of pictures of the prompts to the prompts with the word left out.
    """

    name: str
    likeness: float
    adherence: float


def without_word(prompt: str, token: str) -> str:
    """The prompt with the word left out, and no blanks where it stood."""
    return " ".join(prompt.replace(token, " ").split())


def score_concept(
    encoder: DualEncoder,
    folder: Folder,
    paint: Paint,
    token: str,
    images: Sequence[Path | str],
    bare: str,
    prompts: Sequence[str],
    words: str,
    count: int,
    seed: int,
    batch: int,
) -> list[Personal]:
    """Draw `count` pictures of `bare` and of each of `prompts`, which hold the token, and score them (Gal et al. 2022).

    Beside the concept stand its two ends, prompts alone (the word left out) and the training images taken for pictures, and
    `words` in its place, where there are any. Raises UserError for a prompt that is the word alone.
    """
    asked = [bare, *prompts]
    wanted = {CONCEPT: asked, WITHOUT: [without_word(prompt, token) for prompt in asked]}
    if words:
        wanted[INSTEAD] = [prompt.replace(token, words) for prompt in asked]
    every = list(dict.fromkeys(prompt for own in wanted.values() for prompt in own))
    for _ in draw_all(folder, paint, every, count, seed, {}, batch):
        pass
    features = encoder.images([picture.image for picture in folder.pictures])
    captions = [picture.caption for picture in folder.pictures]
    training = encoder.images(images)
    texts = encoder.texts([without_word(prompt, token) for prompt in prompts])

    def of(prompt: str) -> torch.Tensor:
        return features[[number for number, caption in enumerate(captions) if caption == prompt]]

    rows = []
    for name, own in wanted.items():
        likeness = (of(own[0]) @ training.T).mean().item()
        adherence = torch.stack([(of(prompt) @ text).mean() for prompt, text in zip(own[1:], texts, strict=True)])
        rows.append(Personal(name, likeness, adherence.mean().item()))
    return [*rows, Personal(IMAGES, _among_themselves(training), (training @ texts.T).mean().item())]


def _among_themselves(features: torch.Tensor) -> float:
    """The mean cosine of two different images [N, E]; 1 where there is but one."""
    count = len(features)
    return ((features @ features.T).sum().item() - count) / (count * (count - 1)) if count > 1 else 1.0
