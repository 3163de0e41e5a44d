"""Batches of like samples for training without packing: with images or without, and of like length.

LLaVA's grouping by modality and length, as a function of (seed, epoch): padding is saved, and no rank waits for another's
encoder. What a step's set of samples is still depends on nothing but the seed and the step.
"""

import random

import numpy as np

from mllm.data.dataset import Mixture

CHARS_PER_TOKEN = 4
BATCHES_PER_SORT = 32


def group_by_length(mixture: Mixture, epoch: int, batch_size: int, tokens_per_image: int) -> list[int]:
    """`mixture.order(epoch)` rearranged within each phase, so that the batches cut from it hold samples that are alike.

    Lengths are estimated from the characters of the text, so that nothing is tokenized or opened. Only as many samples
    as are near each other in the mixture's own order are sorted together; then the batches are shuffled.
    """
    chars, images = mixture.sizes()
    lengths = chars / CHARS_PER_TOKEN + images * tokens_per_image
    rng = random.Random(f"{mixture.seed}/{epoch}/length")
    order = mixture.order(epoch)
    grouped: list[int] = []
    for count in mixture.phase_lengths():
        phase = order[len(grouped) : len(grouped) + count]
        # The batch that the phase before began is filled up with what comes.
        begun = -len(grouped) % batch_size
        grouped += phase[:begun] + _grouped(phase[begun:], lengths, images > 0, batch_size, rng)
    return grouped


def _grouped(
    order: list[int], lengths: np.ndarray, has_image: np.ndarray, batch_size: int, rng: random.Random
) -> list[int]:
    batches: list[list[int]] = []
    rest: list[int] = []
    for wanted in (True, False):
        members = [index for index in order if has_image[index] == wanted]
        whole = len(members) // batch_size * batch_size
        rest += members[whole:]
        for start in range(0, whole, BATCHES_PER_SORT * batch_size):
            alike = members[start : min(whole, start + BATCHES_PER_SORT * batch_size)]
            alike.sort(key=lambda index: lengths[index])
            batches += [alike[i : i + batch_size] for i in range(0, len(alike), batch_size)]
    rng.shuffle(batches)
    return [index for batch in batches for index in batch] + rest
