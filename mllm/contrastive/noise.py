"""Captions spoilt on purpose, to learn what a contrastive loss bears: ALIGN's setting (Jia et al. 2021, 2102.05918)."""

import random
from collections.abc import Sequence
from dataclasses import replace

from mllm.contrastive.data import Pair
from mllm.contrastive.settings import CaptionNoiseSettings

BOILERPLATE = (
    "image", "photo", "click to enlarge", "thumbnail", "img_0001.jpg", "untitled", "logo", "picture of the day",
    "image may contain copyright", "download free",
)  # fmt: skip


def spoil_captions(pairs: Sequence[Pair], noise: CaptionNoiseSettings, seed: int) -> tuple[list[Pair], dict[str, int]]:
    """A copy of `pairs` with shares of captions spoilt, a pure function of the seed, and how many of each kind came out
    other than they were: fewer than the share where a caption is one word, or a mismatched one is like its own.

    A mismatched caption comes from the next mismatched pair, so that each still occurs as often.
    """
    rng = random.Random(f"{seed}/noise")
    order = list(range(len(pairs)))
    rng.shuffle(order)
    spoilt, counts, start = list(pairs), {}, 0
    for kind in ("mismatched", "truncated", "boilerplate"):
        count = round(getattr(noise, kind) * len(pairs))
        chosen = order[start : start + count]
        start += count
        counts[kind] = 0
        for place, index in enumerate(chosen):
            words = pairs[index].caption.split()
            if kind == "mismatched":
                caption = pairs[chosen[(place + 1) % len(chosen)]].caption
            elif kind == "truncated":
                caption = " ".join(words[: max(1, len(words) // 2)])
            else:
                caption = rng.choice(BOILERPLATE)
            spoilt[index] = replace(pairs[index], caption=caption)
            counts[kind] += caption != pairs[index].caption
    return spoilt, counts
