"""Places of pairs that are no negatives of each other, against the definition."""

import random
import re

import pytest
import torch

from mllm.contrastive.negatives import describes, mask, same, words_of
from tests.helpers.clip import batcher_of

EVERY = slice(None)


def dense(places, captions, own=EVERY):
    """As bool [b, B], with every pair beside itself, which is in no list."""
    first, end, _ = own.indices(len(captions))
    size = (end - first, len(captions))
    assert all(row + first != column for row, column in places.tolist())
    return mask(places, size, torch.device("cpu")) | torch.eye(len(captions), dtype=torch.bool)[own]


def related(captions, own=EVERY):
    """Those of the same words, and those of which one describes the other's image."""
    words = [words_of(caption) for caption in captions]
    return dense(torch.cat([same(range(len(captions)), words, own), describes(words, own)]), captions, own)


def test_captions_without_words_are_words_themselves():
    captions = ["?!", "a dog", "🐶", "🐶 ", "dog"]
    expected = [[n == m for m in range(5)] for n in range(5)]
    expected[2][3] = expected[3][2] = expected[1][4] = expected[4][1] = True
    assert related(captions).tolist() == expected
    assert related(captions, slice(1, 3)).tolist() == expected[1:3]


def test_pairs_of_one_image_or_of_the_same_words_are_the_same():
    images, captions = ["a", "b", "a"], ["a red dog", "A red dog!", "it barks"]
    expected = [[True, True, True], [True, True, False], [True, False, True]]
    words = [words_of(caption) for caption in captions]
    assert dense(same(images, words, EVERY), captions).tolist() == expected
    assert dense(same(images, words, slice(1, 2)), captions, slice(1, 2)).tolist() == expected[1:2]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a red circle", "a red circle", True),
        ("a circle", "a red circle", True),
        ("A circle!", "a red circle", True),
        ("a blue circle", "a red circle", False),
        ("signs", "keycap star, signs", True),
        ("sign", "keycap star, signs", False),
    ],
)
def test_describes(one, other, expected):
    assert related([one, other]).tolist() == [[True, expected], [expected, True]]


@pytest.mark.parametrize("own", [EVERY, slice(20, 45), slice(59, 60)])
def test_places_are_those_of_comparing_all_pairs(own):
    draw = random.Random(0)
    captions = [" ".join(draw.choices("abcdefgh", k=draw.randint(1, 4))) for _ in range(60)]
    words = [frozenset(re.findall(r"\w+", caption)) for caption in captions]
    expected = torch.tensor([[a <= b or b <= a for b in words] for a in words])
    assert torch.equal(related(captions, own), expected[own])
    images = [draw.randint(0, 20) for _ in captions]
    expected = torch.tensor([[i == j or a == b for j, b in zip(images, words)] for i, a in zip(images, words)])  # noqa: B905
    assert torch.equal(dense(same(images, words, own), captions, own), expected[own])


@pytest.mark.parametrize(("kind", "ignore", "listed"), [
    ("infonce", "none", 0), ("infonce", "same", 48), ("infonce", "describes", 48), ("multi_positive", "none", 48),
])  # fmt: skip
def test_a_batch_lists_what_its_loss_asks_for(pairs, tmp_path, kind, ignore, listed):
    batch = batcher_of(pairs, tmp_path, loss__kind=kind, loss__ignore=ignore, train__global_batch_size=16).batch(0)
    # Of sixteen pairs of four colours, each has three of its own.
    assert len({tuple(place) for place in batch.same.tolist()}) == listed and not len(batch.describes)
