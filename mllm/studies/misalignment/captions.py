"""Captions of scenes from their tables of factors, with some factors left out and some told wrongly.

B captions, L words.
"""

from collections.abc import Mapping, Sequence

import torch

from mllm.studies.misalignment.scenes import COUNTS, FACTORS

# What is said of a factor behind the noun.
PHRASES = {
    "background": "on {}",
    "rotation": "standing {}",
    "horizontal": "{} column",
    "vertical": "{} row",
}
BEFORE = ("size", "colour")
BEHIND = tuple(PHRASES)
NO_SHAPE = "thing"
TEMPLATES = len(BEHIND)
WRONG_SHARE = 0.9
LONGEST = 12


def caption(told: Mapping[str, str], template: int) -> str:
    """Say the factors that are `told`, by name; a template is the order of what stands behind the noun."""
    words = ["a", *(told[factor] for factor in BEFORE if factor in told), told.get("shape", NO_SHAPE)]
    order = BEHIND[template:] + BEHIND[:template]
    return " ".join([*words, *(PHRASES[factor].format(told[factor]) for factor in order if factor in told)])


def _vocabulary() -> dict[str, int]:
    phrases = [word for phrase in PHRASES.values() for word in phrase.split() if word != "{}"]
    values = [value for values in FACTORS.values() for value in values]
    return {word: n for n, word in enumerate(dict.fromkeys(["", "a", NO_SHAPE, *phrases, *values]))}


VOCABULARY = _vocabulary()


def told_values(values: torch.Tensor, perturbed: Sequence[str], generator: torch.Generator) -> torch.Tensor:
    """Redraw each factor of `perturbed` in int [B, factors] with a chance of WRONG_SHARE, evenly from its values."""
    told = values.clone()
    for n, factor in enumerate(FACTORS):
        if factor in perturbed:
            other = torch.randint(COUNTS[n], (len(values),), generator=generator)
            wrong = torch.rand(len(values), generator=generator) < WRONG_SHARE
            told[:, n] = torch.where(wrong, other, told[:, n])
    return told


def write_captions(told: torch.Tensor, omitted: Sequence[str], generator: torch.Generator) -> list[str]:
    """Write a caption of each row of int [B, factors] without the factors `omitted`, in a template that is drawn."""
    templates = torch.randint(TEMPLATES, (len(told),), generator=generator).tolist()
    kept = [(n, factor, names) for n, (factor, names) in enumerate(FACTORS.items()) if factor not in omitted]
    return [
        caption({factor: names[row[n]] for n, factor, names in kept}, template)
        for row, template in zip(told.tolist(), templates, strict=True)
    ]


def word_ids(captions: Sequence[str]) -> torch.Tensor:
    """Words' places in the vocabulary, int64 [B, LONGEST], 0 behind the end."""
    ids = torch.zeros(len(captions), LONGEST, dtype=torch.int64)
    for n, words in enumerate(captions):
        row = [VOCABULARY[word] for word in words.split()]
        ids[n, : len(row)] = torch.tensor(row)
    return ids
