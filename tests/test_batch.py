from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mllm.batch import NO_PARENT, Batch, SegmentBounds
from mllm.media.prepare import ImagePreparer


def test_bounds_cut_the_line_of_rows_at_segments_and_padding():
    bounds = SegmentBounds.of([[3, 200], [5]], [[NO_PARENT, NO_PARENT], [NO_PARENT]], 205)
    assert bounds.pieces.tolist() == [0, 3, 203, 205, 210, 338, 410]
    assert (bounds.longest_piece, bounds.pieces.dtype) == (200, torch.int32)
    assert not bounds.has_trunks and bounds.branch_bounds.tolist() == bounds.trunk_bounds.tolist() == [0]


def test_branches_stand_beside_their_trunk_wherever_they_are_in_a_row():
    # Of the first row, segments 0 and 3 are trunks; 1 and 4 are branches of 0 and 3, 2 and 5 of 0. The second has none.
    parents = [[NO_PARENT, 0, 0, NO_PARENT, 3, 0], [NO_PARENT]]
    bounds = SegmentBounds.of([[2, 1, 1, 3, 2, 1], [4]], parents, 12)
    assert bounds.branch_places.tolist() == [2, 3, 9, 7, 8]
    assert bounds.trunk_places.tolist() == [0, 1, 4, 5, 6]
    assert (bounds.branch_bounds.tolist(), bounds.trunk_bounds.tolist()) == ([0, 3, 5], [0, 2, 5])
    assert (bounds.longest_branches, bounds.longest_trunk) == (3, 3)
    assert bounds.to(torch.device("meta")).branch_places.device.type == "meta"


@pytest.mark.parametrize(
    ("mean", "std"),
    [((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))],
    ids=["clip", "siglip"],
)
def test_pixels_that_travel_as_bytes_become_those_of_the_preparer_to_the_last_bit(mean, std):
    every_byte = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    expected = ImagePreparer(16, mean, std, "stretch")(Image.fromarray(every_byte))
    none = torch.empty(0, dtype=torch.int64)
    bounds = SegmentBounds.of([[1]], [[NO_PARENT]], 1)
    pixels = torch.from_numpy(every_byte.transpose(2, 0, 1).copy())[None]
    batch = Batch(none, none, none, none, bounds, none, none, none, {"tiles": pixels}, torch.tensor([mean, std]))
    assert torch.equal(batch.normalized_tiles()[0], expected)
    wide = replace(batch, media={"tiles": expected[None]}, pixel_statistics=None)
    assert wide.normalized_tiles() is wide.tiles
