"""Tiles and counts of the releases that they are of: those of transformers' processors, to the token and to the pixel."""

import io
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    GotOcr2ImageProcessorPil,
    LlavaNextConfig,
    LlavaNextImageProcessorPil,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessorPil,
)

from benchmarks.token_counts import PEERS, differing, draw_sizes
from mllm.errors import UserError
from mllm.media.decode import read_image, read_image_size
from mllm.media.prepare import ImagePreparer
from mllm.media.visual import ImageGeometry
from mllm.model.planning import build_planner, encoder_geometry
from mllm.model.settings import ImageSettings, ProjectorSettings, VideoSettings
from mllm.model.tile_tokens import projected

MEAN, STD = (0.481, 0.458, 0.408), (0.269, 0.261, 0.276)
NEXT, ONEVISION = ImageGeometry(336, 14), ImageGeometry(384, 14)
# (width, height): LLaVA-NeXT by transformers' rule and by the original's, LLaVA-OneVision likewise.
COUNTS = {
    (1, 1): (1176, 1176, 1485, 1485),
    (336, 336): (1176, 1176, 1485, 1485),
    (100, 336): (792, 1296, 999, 999),
    (320, 240): (1368, 1026, 1317, 1317),
    (337, 337): (2928, 2928, 1485, 1485),
    (640, 480): (2340, 2340, 2929, 2929),
    (480, 640): (2352, 2352, 2943, 2943),
    (899, 1024): (2640, 2640, 6561, 6561),
    (1920, 1080): (1948, 1948, 7269, 7269),
    (3000, 15): (576, 576, 892, 892),
    (15, 3000): (648, 648, 1053, 1053),
    (950, 1256): (2352, 2352, 7332, 7332),
    (2214, 1640): (2340, 2340, 7309, 7284),
    (947, 1157): (2544, 2544, 8765, 8765),
}
# (height, width): of no pixel to spare, of strips, of a tie between pinpoints, and of sides that don't divide.
ODD = [
    (1, 1),
    (1, 200),
    (200, 1),
    (15, 3000),
    (3000, 15),
    (1256, 950),
    (1640, 2214),
    (840, 700),
    (767, 768),
    (100, 336),
]


def planner(geometry, **image):
    return build_planner(geometry, ImageSettings(**image), VideoSettings())


@pytest.mark.parametrize("size", COUNTS, ids=lambda size: f"{size[0]}x{size[1]}")
def test_counts_are_the_published_ones_by_both_rules(size):
    ways = [(NEXT, "anyres"), (ONEVISION, "anyres_max")]
    ours = [
        planner(geometry, tiling=tiling, rule=rule).plan([size[::-1]])[0].token_count
        for geometry, tiling in ways
        for rule in ("hf", "original")
    ]
    assert tuple(ours) == COUNTS[size]


def edges(peer):
    """Sizes around each pinpoint, to a pixel, and those where it is told whether a map is scaled down."""
    for rows, columns in peer.pinpoints[:12]:
        yield from ((rows + up, columns + right) for up in (-1, 0, 1) for right in (-1, 0, 1))
    yield from ODD
    yield from ((size[1], size[0]) for size in COUNTS)
    yield from ((1157 + up, 947 + right) for up in range(-6, 7) for right in range(-6, 7))


@pytest.mark.parametrize("name", PEERS)
def test_counts_are_those_of_transformers_processors(name):
    peer = PEERS[name]
    assert differing(peer, edges(peer)) == []
    assert differing(peer, draw_sizes(peer, 900, random.Random(1))) == []


def test_pinpoints_have_the_order_of_transformers():
    for geometry, tiling, config in (
        (NEXT, "anyres", LlavaNextConfig),
        (ONEVISION, "anyres_max", LlavaOnevisionConfig),
    ):
        assert [
            list(size) for size in planner(geometry, tiling=tiling).tiling.canvases
        ] == config().image_grid_pinpoints


def test_a_map_is_scaled_down_from_eleven_tenths_of_the_limit_on():
    """1157 × 947 pixels keep 98 × 81 features, 1.0999 times as long a side as nine tiles have; one row more is above."""
    below, above = (
        planner(ONEVISION, tiling="anyres_max").plan([size])[0].arrangement for size in ((1157, 947), (1170, 947))
    )
    assert below.scaled is None and above.scaled is not None
    assert above.scaled[0] * above.scaled[1] <= 9 * ONEVISION.side**2


@pytest.mark.parametrize("geometry,tiling,most", [(NEXT, "anyres", 2928), (ONEVISION, "anyres_max", 8765)])
def test_no_image_has_more_tokens_than_the_longest(geometry, tiling, most):
    plan = planner(geometry, tiling=tiling)
    peer = PEERS["LLaVA-OneVision, 36 pinpoints of 384 px"]
    assert plan.longest().token_count == most
    assert all(plan.plan([size])[0].token_count <= most for size in draw_sizes(peer, 600, random.Random(2)))


def same_pixels(image, visual, preparer, peer, **more):
    """Whether the tiles have a peer's pixels in 8 bits, and normalized ones but for the order of float32 operations."""
    values = [
        peer(images=image, return_tensors="pt", do_rescale=exact, do_normalize=exact, **more)["pixel_values"]
        for exact in (False, True)
    ]
    bytes_, normalized = (each[0] if each.dim() == 5 else each for each in values)
    ours = torch.stack(preparer.fitted_tiles(image, visual.crops))
    near = torch.allclose(torch.stack(preparer.tiles(image, visual.crops)), normalized.float(), rtol=0, atol=1e-6)
    return torch.equal(ours, bytes_.to(torch.uint8)) and near


@pytest.fixture(scope="module")
def images():
    """Pictures of noise of 44 sizes and of odd kinds, as a file's bytes."""
    files = []
    rng, generator = np.random.default_rng(0), random.Random(0)
    sizes = [
        *(size for size in ODD if size[0] * size[1] < 2e6),
        *((generator.randint(1, 300), generator.randint(1, 300)) for _ in range(31)),
    ]
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = {5: ("RGBA", "PNG", {}), 7: ("L", "PNG", {}), 11: ("P", "PNG", {}), 13: ("RGB", "JPEG", {"exif": exif})}
    kinds |= {17: ("LA", "PNG", {}), 19: ("CMYK", "JPEG", {}), 23: ("RGB", "WEBP", {})}
    for number, size in enumerate([*sizes, (336, 336), (337, 335), (64, 64), (63, 65)]):
        picture = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        mode, kind, more = kinds.get(number, ("RGB", "PNG", {}))
        buffer = io.BytesIO()
        picture.convert(mode).save(buffer, kind, **more, **({"compress_level": 0} if kind == "PNG" else {}))
        files.append(buffer.getvalue())
    return files


def test_anyres_tiles_are_those_of_transformers_to_the_pixel(images):
    """Of the image as it is displayed: what a rotation, a palette or transparency becomes is the decoder's to say."""
    side, values = 32, {"image_mean": list(MEAN), "image_std": list(STD)}
    square, geometry, preparer = {"height": 32, "width": 32}, ImageGeometry(32, 4), ImagePreparer(32, MEAN, STD)
    plans = {name: planner(geometry, tiling=name) for name in ("anyres", "anyres_max")}
    points = {name: [list(size) for size in plan.tiling.canvases] for name, plan in plans.items()}
    peers = {
        "anyres": LlavaNextImageProcessorPil(
            size={"shortest_edge": side}, crop_size=square, image_grid_pinpoints=points["anyres"], **values
        ),
        "anyres_max": LlavaOnevisionImageProcessorPil(size=square, image_grid_pinpoints=points["anyres_max"], **values),
    }
    assert len(images) >= 40
    for data in images:
        image = read_image(data)
        for name, plan in plans.items():
            (visual,) = plan.plan([read_image_size(data)])
            assert same_pixels(image, visual, preparer, peers[name]), (name, image.size)


def test_several_images_of_onevision_are_padded_squares_to_the_pixel(images):
    geometry, preparer = ImageGeometry(32, 4), ImagePreparer(32, MEAN, STD, "pad")
    plan = planner(geometry, tiling="anyres_max", several="square", several_in="sample")
    pictures = [read_image(data) for data in images[10:16]]
    peer = LlavaOnevisionImageProcessorPil(size={"height": 32, "width": 32}, do_normalize=False, do_rescale=False)
    peer.image_mean = list(MEAN)
    theirs = peer(images=[pictures], return_tensors="pt")["pixel_values"]
    visuals = plan.plan([image.size[::-1] for image in pictures], range(len(pictures)))
    for image, visual, pixels in zip(pictures, visuals, theirs, strict=True):
        assert visual.token_count == geometry.side**2 + 1
        assert torch.equal(torch.stack(preparer.fitted_tiles(image, visual.crops)), pixels.to(torch.uint8))


def test_grids_are_those_of_transformers_to_the_pixel(images):
    preparer, plan = ImagePreparer(32, MEAN, STD), planner(ImageGeometry(32, 4), tiling="grid")
    peer = GotOcr2ImageProcessorPil(
        size={"height": 32, "width": 32}, image_mean=list(MEAN), image_std=list(STD), crop_to_patches=True
    )
    for data in images:
        image = read_image(data)
        (visual,) = plan.plan([image.size[::-1]])
        assert same_pixels(image, visual, preparer, peer), image.size


def test_a_grid_has_as_many_tiles_as_transformers_counts():
    peer, rng = GotOcr2ImageProcessorPil(size={"height": 448, "width": 448}, crop_to_patches=True), random.Random(3)
    for most in (1, 6, 12):
        plan = planner(ImageGeometry(448, 14, shuffle=2), tiling="grid", max_tiles=most)
        for _ in range(300):
            height, width = rng.randint(1, 3000), rng.randint(1, 3000)
            (visual,) = plan.plan([(height, width)])
            assert visual.tile_count == peer.get_number_of_image_patches(height, width, {"max_patches": most})
            assert visual.token_count == 256 * visual.tile_count


@pytest.mark.parametrize("size", [(15, 3000), (3000, 15)])
def test_a_map_of_padding_alone_is_no_row_or_newlines(size):
    (visual,) = planner(NEXT, tiling="anyres").plan([size])
    rows, columns = visual.arrangement.map_size(visual.grid, NEXT.side)
    assert rows * columns == 0 and visual.token_count == NEXT.side**2 + rows


@pytest.mark.parametrize(
    "geometry,image,words",
    [
        (
            ImageGeometry(32, 4),
            {"pinpoints": [[32, 64], [48, 32]]},
            r"\[48, 32\] is no multiple of the encoder's 32 px",
        ),
        (ImageGeometry(32, 4), {"pinpoints": [[0, 32]]}, r"\[0, 32\] is no multiple"),
        (ImageGeometry(32, 4), {"max_tiles": 1}, "max_tiles is 1, and every one of model.image.pinpoints has more"),
        (ImageGeometry(32, 4, keep_class_token=True), {}, "no place for a class token; set .*class_token: drop"),
    ],
)
def test_tiles_that_cannot_be_are_refused_in_a_line(geometry, image, words):
    with pytest.raises(UserError, match=words):
        planner(geometry, tiling="anyres", **image)


def test_a_shuffle_that_does_not_fit_the_grid_is_refused():
    with pytest.raises(UserError, match=r"model\.projector\.shuffle: a grid of 27×27 patches can't be shuffled by 2"):
        projected(encoder_geometry(384, 14, "drop"), ProjectorSettings(shuffle=2))
    tokens = [
        planner(ImageGeometry(336, 14, shuffle=n), tiling="anyres").plan([(480, 640)])[0].token_count for n in (1, 2, 3)
    ]
    assert tokens == sorted(tokens, reverse=True) and all(a > 2 * b for a, b in pairwise(tokens))
