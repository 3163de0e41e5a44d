"""Noise on the embeddings of words: scaled by each sample's own length, on text alone, in training alone."""

import math

import pytest
import torch

from mllm.batch import PADDING_SEGMENT
from mllm.checkpoint.start import build
from mllm.model.multimodal import add_noise, sample_lengths
from tests.helpers.layouts import tiled_settings
from tests.helpers.samples import batch_of
from tests.helpers.tiny import tiny_settings

ALPHA, WIDTH = 5.0, 512


@pytest.mark.parametrize("packing", ["none", "samples"])
@pytest.mark.parametrize("layout", ["square", "anyres", "grid"])
def test_noise_is_scaled_by_each_samples_own_length(tiny_parts, samples, layout, packing):
    """Tiles and the newlines between them are counted, and none of their tokens is changed."""
    _, processor = build(tiled_settings(tiny_parts, layout))
    batch = batch_of(samples, processor, packing)
    assert (len(batch.tiles) > len(batch.visuals)) == (layout != "square")
    noise = add_noise(torch.zeros(*batch.input_ids.shape, WIDTH), batch, processor.image_token_id, ALPHA)
    is_image, is_padding = batch.input_ids == processor.image_token_id, batch.segment_ids == PADDING_SEGMENT
    assert is_image.any() and not noise[is_image].any() and not noise[is_padding].any()
    for row in range(len(batch.input_ids)):
        for segment in range(int(batch.segment_ids[row].max()) + 1):
            own = batch.segment_ids[row] == segment
            bound = ALPHA / math.sqrt(int(own.sum()) * WIDTH)
            size = noise[row][own & ~is_image[row]].abs()
            assert 0.99 * bound < size.max() <= bound * (1 + 1e-6)


def test_a_branch_counts_its_trunk_and_a_trunk_takes_the_mean_of_its_samples():
    segments = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2, -1], [0, 0, -1, -1, -1, -1, -1, -1, -1, -1]])
    parents = torch.tensor([[-1, 0, 0], [-1, -1, -1]])
    assert sample_lengths(segments, parents)[:, :3].tolist() == [[6, 5, 7], [2, 0, 0]]


def test_noise_is_drawn_in_training_alone_and_from_the_global_generator(tiny_parts, samples):
    model, processor = build(tiny_settings(tiny_parts))
    batch = batch_of(samples, processor, "samples")
    with torch.no_grad():
        plain = model.train()(batch)
        model.neftune_alpha = ALPHA
        torch.manual_seed(3)
        noisy = model(batch)
        torch.manual_seed(3)
        assert noisy != plain and model(batch) == noisy and model(batch) != noisy
        assert model.eval()(batch) == plain
