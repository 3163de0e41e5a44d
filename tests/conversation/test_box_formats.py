"""Box formats: what is written is read as the same place, and answers are read in all shapes that they come in."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.kosmos2.processing_kosmos2 import coordinate_to_patch_index, patch_index_to_coordinate

from mllm.conversation.boxes import BOX_FORMATS, Region
from mllm.errors import ConversationRefusedError, UserError
from mllm.media.frame import Frame, frame_of
from mllm.media.visual import ImageGeometry
from mllm.model.planning import build_planner
from mllm.model.settings import ImageSettings, VideoSettings

GEOMETRY = ImageGeometry(336, 14)
WHOLE = Frame((100, 200), pixels=(336, 336))
WAYS = {
    **{fit: ImageSettings(fit=fit) for fit in ("pad", "crop", "stretch")},
    "anyres": ImageSettings(tiling="anyres"),
    "anyres, original": ImageSettings(tiling="anyres", rule="original", max_tiles=2),
    "anyres_max": ImageSettings(tiling="anyres_max", fit="pad"),
    "grid": ImageSettings(tiling="grid", max_tiles=6, fit="pad"),
}
PLANNERS = {name: build_planner(GEOMETRY, image, VideoSettings()) for name, image in WAYS.items()}
sides = st.one_of(st.integers(1, 2000), st.sampled_from([1, 2, 335, 336, 337, 9000]))
calm = settings(max_examples=15, deadline=None)
shares = st.floats(0, 1, allow_nan=False, width=64)


def frame(name, size):
    (visual,) = PLANNERS[name].plan([size])
    return frame_of(size, visual, WAYS[name].fit, GEOMETRY.image_size_px)


def in_units(name, frame, x, y):
    """A place of the image in the units that the format writes, in which an error of one half is the least there is."""
    wholes = {"qwen_vl": 999, "qwen2_vl": 1000, "internvl": 1000, "kosmos2": 32}
    if name in wholes:
        return x * wholes[name], y * wholes[name]
    x, y = frame.into(x, y)
    height, width = (100, 100) if name == "llava" else frame.pixels
    return x * width, y * height


@pytest.mark.parametrize("name", BOX_FORMATS)
@pytest.mark.parametrize("way", WAYS)
@calm
@given(
    height=sides,
    width=sides,
    places=st.lists(st.tuples(shares, shares, shares, shares), min_size=1, max_size=3),
    label=st.sampled_from(["", "the dog", "2 dogs, 3 cats", "a cat (left)", "größer"]),
)
def test_a_place_is_read_as_it_was_written_to_half_a_unit(name, way, height, width, places, label):
    shown = frame(way, (height, width))
    left, top, right, bottom = shown.extent
    low, high = (
        (max(left, 0.0), max(top, 0.0)),
        (min(right, 1.0), min(bottom, 1.0)),
    )  # what the encoder sees of the image
    boxes = []
    for numbers in places:
        scaled = [low[i % 2] + n * (high[i % 2] - low[i % 2]) for i, n in enumerate(numbers)]
        (x1, x2), (y1, y2) = sorted(scaled[::2]), sorted(scaled[1::2])
        boxes.append(Region(label=label, box=(x1, y1, x2, y2)))
    form = BOX_FORMATS.get(name)
    found = form.read(form.write(boxes, shown), shown)
    assert [region.label for region in found] == [label] * len(boxes)
    for written, read in zip(boxes, found, strict=True):
        before = [in_units(name, shown, *point) for point in written.points]
        after = [in_units(name, shown, *point) for point in read.points]
        # Kosmos-2 reads a box within one row or column of cells from edge to edge.
        is_strip = name == "kosmos2" and any(round(after[1][axis] - after[0][axis], 6) == 1 for axis in (0, 1))
        limit = 1.0 if is_strip else 0.5
        assert all(
            abs(a - b) <= limit + 1e-6
            for one, two in zip(before, after, strict=True)
            for a, b in zip(one, two, strict=True)
        )


@calm
@given(
    places=st.lists(st.tuples(shares, shares, shares, shares, shares, shares, shares, shares), min_size=1, max_size=3)
)
def test_points_and_quadrilaterals_are_read_as_they_were_written(places):
    for name in BOX_FORMATS:
        form = BOX_FORMATS.get(name)
        for kind, size in (("point", 2), ("quad", 8)):
            regions = [Region.model_validate({"label": "it", kind: numbers[:size]}) for numbers in places]
            if kind not in form.kinds:
                with pytest.raises(ConversationRefusedError, match=f"has no {kind}"):
                    form.write(regions, WHOLE)
                continue
            found = form.read(form.write(regions, WHOLE), WHOLE)
            assert [region.kind for region in found] == [kind] * len(regions)
            for written, read in zip(regions, found, strict=True):
                pairs = zip(written.points, read.points, strict=True)
                units = [(in_units(name, WHOLE, *a), in_units(name, WHOLE, *b)) for a, b in pairs]
                assert all(abs(p - q) <= 0.5 + 1e-6 for a, b in units for p, q in zip(a, b, strict=True))


@calm
@given(numbers=st.tuples(*[st.integers(0, 1000).map(lambda n: n / 1000)] * 4))
def test_cells_of_kosmos_2_are_those_of_transformers(numbers):
    (x1, x2), (y1, y2) = sorted(numbers[::2]), sorted(numbers[1::2])
    if x1 == x2 or y1 == y2:
        return  # refused there
    form, (first, last) = BOX_FORMATS.get("kosmos2"), coordinate_to_patch_index((x1, y1, x2, y2), 32)
    text = form.write([Region(label="a snowman", box=(x1, y1, x2, y2))], WHOLE)
    assert text == f"<phrase>a snowman</phrase><object><patch_index_{first:04d}><patch_index_{last:04d}></object>"
    assert form.read(text, WHOLE)[0].box == pytest.approx(patch_index_to_coordinate(first, last, 32))


def test_each_format_writes_what_its_release_writes():
    regions = [Region(label="the dog", box=(0.1, 0.2, 0.5, 0.75)), Region(label="cats", box=(0.0, 0.0, 1.0, 1.0))]
    padded = frame("pad", (100, 200))  # 50 rows of padding above and below
    written = {name: BOX_FORMATS.get(name).write(regions, padded) for name in BOX_FORMATS}
    assert written["llava"] == "the dog: [0.10, 0.35, 0.50, 0.62]\ncats: [0.00, 0.25, 1.00, 0.75]"
    assert written["qwen_vl"] == (
        "<ref>the dog</ref><box>(100,200),(500,749)</box><ref>cats</ref><box>(0,0),(999,999)</box>"
    )
    assert written["qwen2_vl"] == (
        "<|object_ref_start|>the dog<|object_ref_end|><|box_start|>(100,200),(500,750)<|box_end|>"
        "<|object_ref_start|>cats<|object_ref_end|><|box_start|>(0,0),(1000,1000)<|box_end|>"
    )
    assert written["qwen25_vl_json"] == (
        '```json\n[\n\t{"bbox_2d": [34, 118, 168, 210], "label": "the dog"},\n'
        '\t{"bbox_2d": [0, 84, 336, 252], "label": "cats"}\n]\n```'
    )
    assert written["internvl"] == (
        "<ref>the dog</ref><box>[[100, 200, 500, 750]]</box><ref>cats</ref><box>[[0, 0, 1000, 1000]]</box>"
    )
    assert written["kosmos2"] == (
        "<phrase>the dog</phrase><object><patch_index_0195><patch_index_0751></object>"
        "<phrase>cats</phrase><object><patch_index_0000><patch_index_1023></object>"
    )
    unnamed = [Region(box=(0.1, 0.2, 0.5, 0.75))]
    assert BOX_FORMATS.get("llava").write(unnamed, WHOLE) == "[0.10, 0.20, 0.50, 0.75]"


BOX = (0.1, 0.2, 0.5, 0.8)
OTHER = (0.0, 0.25, 0.25, 1.0)
QUAD = (0.1, 0.2, 0.5, 0.2, 0.5, 0.8, 0.1, 0.8)
EDGES = (1 / 64, 1 / 64, 63 / 64, 63 / 64)
JSON = '{"bbox_2d": [10, 20, 50, 80], "label": "2 dogs"}'
# (format, answer, what is read of it); a picture of 100 × 100 pixels.
SHAPES = [
    ("llava", "[0.10, 0.20, 0.50, 0.80]", [BOX]),
    ("llava", "[0.1,0.2,0.5,0.8]", [BOX]),
    ("llava", "[ .1, .2, .5, .8 ]", [BOX]),
    ("llava", "(0.10, 0.20, 0.50, 0.80)", [BOX]),
    ("llava", "0.10, 0.20, 0.50, 0.80", [BOX]),
    ("llava", "The 2 dogs of 2024 are at [0.10, 0.20, 0.50, 0.80].", [BOX]),
    ("llava", "[0.50, 0.80, 0.10, 0.20]", [BOX]),
    ("llava", "[[0.10, 0.20, 0.50, 0.80], [0, 0.25, 0.25, 1]]", [BOX, OTHER]),
    ("llava", "a dog: [0.10, 0.20, 0.50, 0.80]\n2. a cat: [0.00, 0.25, 0.25, 1.00]", [BOX, OTHER]),
    ("llava", "I see 2 dogs, 3 cats, 4 birds and 5 cows.", []),
    ("llava", "[0.1, 0.2, 0.5]", []),
    ("llava", "[0.1, 0.2, 0.5, 0.8, 0.9]", []),
    ("llava", "It isn't in the image.", []),
    ("llava", "", []),
    ("qwen_vl", "<ref>2 dogs</ref><box>(100,200),(500,799)</box>", [BOX]),
    ("qwen_vl", "<box>(100,200),(500,799)</box>", [BOX]),
    ("qwen_vl", "(100,200),(500,799)</box>", [BOX]),
    ("qwen_vl", " (100, 200), (500, 799)", [BOX]),
    ("qwen_vl", "<box>(500,799),(100,200)</box>", [BOX]),
    ("qwen_vl", "<ref>1 dog and 1 cat</ref><box>(100,200),(500,799)</box><box>(0,250),(250,999)</box>", [BOX, OTHER]),
    ("qwen_vl", "<ref>a</ref><box>(100,200),(500,799)</box> on <ref>b</ref><box>(0,250),(250,999)</box>", [BOX, OTHER]),
    ("qwen_vl", "<ref>sign 24</ref><quad>(100,200),(500,200),(500,799),(100,799)</quad>", [QUAD]),
    ("qwen_vl", "<box>(100,200),(500,799)", [BOX]),
    ("qwen_vl", "<box></box>", []),
    ("qwen_vl", "<box>(100,200)</box>", []),
    ("qwen_vl", "(1,2),(3,4),(5,6),(7,8)", []),
    ("qwen_vl", "<ref>2 dogs, 3 cats</ref>", []),
    ("qwen_vl", "There are 2 dogs (1 brown, 1 black).", []),
    ("qwen2_vl", "<|object_ref_start|>2 dogs<|object_ref_end|><|box_start|>(100,200),(500,800)<|box_end|>", [BOX]),
    ("qwen2_vl", "<|box_start|>(100,200),(500,800)<|box_end|><|box_start|>(0,250),(250,1000)<|box_end|>", [BOX, OTHER]),
    ("qwen2_vl", "<|box_start|>(100,200)<|box_end|>", [(0.1, 0.2)]),
    ("qwen2_vl", "<|quad_start|>(100,200),(500,200),(500,800),(100,800)<|quad_end|>", [QUAD]),
    ("qwen2_vl", "The image shows no dog.", []),
    ("qwen25_vl_json", JSON, [BOX]),
    ("qwen25_vl_json", f"```json\n[\n\t{JSON}\n]\n```", [BOX]),
    ("qwen25_vl_json", f"Here are the 2 boxes:\n```json\n[{JSON},\n {{\"bbox_2d\": [0, 25, 25, 100]}}]\n```", [BOX, OTHER]),
    ("qwen25_vl_json", '{"label": "3 cats", "bbox_2d": [10, 20, 50, 80]}', [BOX]),
    ("qwen25_vl_json", '{"bbox_2d": [[10, 20, 50, 80], [0, 25, 25, 100]]}', [BOX, OTHER]),
    ("qwen25_vl_json", '{"bbox_2d": ["10", "20", "50", "80"]}', [BOX]),
    ("qwen25_vl_json", "{'bbox_2d': [10, 20, 50, 80], 'label': 'it\\'s 1 dog'}", [BOX]),
    ("qwen25_vl_json", '[{"bbox_2d": [10, 20, 50, 80], "lab', [BOX]),
    ("qwen25_vl_json", '[{"bbox_2d": [10, 20, 50, 80]}, {"bbox_2d": [0, 25', [BOX]),
    ("qwen25_vl_json", '{"bbox_2d": [50, 80, 10, 20]}', [BOX]),
    ("qwen25_vl_json", '{"point_2d": [10, 20], "label": "nose"}', [(0.1, 0.2)]),
    ("qwen25_vl_json", "[10, 20, 50, 80]", [BOX]),
    ("qwen25_vl_json", '{"count": 4, "years": [1, 2]}', []),
    ("qwen25_vl_json", '{"bbox_2d": []}', []),
    ("qwen25_vl_json", "None of the 2 dogs is shown.", []),
    ("internvl", "<ref>the 2 dogs</ref><box>[[100, 200, 500, 800]]</box>", [BOX]),
    ("internvl", "<box>[[100, 200, 500, 800], [0, 250, 250, 1000]]</box>", [BOX, OTHER]),
    ("internvl", "[[100, 200, 500, 800]]", [BOX]),
    ("internvl", "[0.1, 0.2, 0.5, 0.8]", [BOX]),
    ("internvl", "<box>[[500, 800, 100, 200]]", [BOX]),
    ("internvl", "<ref>no. 3</ref> isn't there", []),
    ("kosmos2", "<phrase>2 dogs</phrase><object><patch_index_0000><patch_index_1023></object>", [EDGES]),
    ("kosmos2", "<object><patch_index_0033><patch_index_0033></object>", [(1 / 32, 1 / 32, 2 / 32, 2 / 32)]),
    ("kosmos2", "<patch_index_9999><patch_index_0001>", []),
    ("kosmos2", "2 dogs", []),
]  # fmt: skip


@pytest.mark.parametrize(("name", "answer", "expected"), SHAPES)
def test_an_answer_is_read_in_the_shapes_that_it_comes_in(name, answer, expected):
    found = BOX_FORMATS.get(name).read(answer, Frame((50, 80), pixels=(100, 100)))
    assert [region.numbers for region in found] == [pytest.approx(numbers, abs=2e-3) for numbers in expected]


def test_names_are_read_with_their_digits_and_quotes():
    label = 'the "2nd" dog, a\\b'
    for name in ("qwen_vl", "qwen2_vl", "qwen25_vl_json", "internvl", "kosmos2"):
        form = BOX_FORMATS.get(name)
        assert [region.label for region in form.read(form.write([Region(label=label, box=BOX)], WHOLE), WHOLE)] == [
            label
        ]
    assert (
        BOX_FORMATS.get("qwen25_vl_json").read("{'bbox_2d': [1, 2, 3, 4], 'label': '3 cats'}", WHOLE)[0].label
        == "3 cats"
    )


def test_what_reaches_beyond_the_image_is_cut_at_its_edges_and_read_as_it_is():
    form = BOX_FORMATS.get("qwen2_vl")
    assert form.write([Region(box=(-0.5, 0.25, 1.5, 2.0))], WHOLE) == "<|box_start|>(0,250),(1000,1000)<|box_end|>"
    (read,) = form.read("<|box_start|>(0,250),(1500,800)<|box_end|>", WHOLE)
    assert read.box == (0.0, 0.25, 1.5, 0.8) and not read.is_within


def test_an_unknown_format_lists_the_choices():
    with pytest.raises(
        UserError, match="unknown box format 'qwen3'; choose one of: internvl, kosmos2, llava, qwen25_vl_json"
    ):
        BOX_FORMATS.get("qwen3")


def test_numbers_that_are_no_places_are_told_in_words():
    assert Region(box=BOX).fault() is None and Region(point=(0.1, 7.0)).fault() is None
    assert "no number" in (Region(box=(0.1, float("nan"), 0.2, 0.3)).fault() or "")
    assert "other way round" in (Region(box=(0.5, 0.2, 0.1, 0.8)).fault() or "")
    assert json.loads(Region(box=BOX).model_dump_json(exclude_none=True)) == {"label": "", "box": list(BOX)}
