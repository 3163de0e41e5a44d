"""Boxes of a sample become text at the one door, in the model's format and over what the encoder sees."""

import pytest
import torch

from mllm.conversation.boxes import BOX_FORMATS, Region
from mllm.conversation.formats import PROMPT_FORMATS
from mllm.conversation.schema import BoxesPart, ImagePart, Message, TextPart, check_turns
from mllm.errors import BadSampleError, ConversationRefusedError, UserError
from mllm.media.prepare import ImagePreparer
from mllm.media.visual import ImageGeometry
from mllm.model.planning import build_planner
from mllm.model.settings import ImageSettings, VideoSettings
from mllm.processor import Processor
from tests.helpers.tiny import byte_tokenizer

GEOMETRY = ImageGeometry(image_size_px=16, patch_size_px=4)
BOX = (0.25, 0.0, 0.5, 1.0)


def processor(box_format="llava", prompt_format="chatml", **image):
    planner = build_planner(GEOMETRY, ImageSettings(**image), VideoSettings())
    preparer = ImagePreparer(16, (0.5,) * 3, (0.5,) * 3, image.get("fit", "pad"))
    return Processor(byte_tokenizer(), prompt_format, GEOMETRY, preparer, planner=planner, box_format=box_format)


def conversation(answer, question="where is it?", images=1):
    shown = (*(ImagePart() for _ in range(images)), TextPart(text=question))
    return [Message(role="user", content=shown), Message(role="assistant", content=answer)]


def boxes(*numbers, label="", **fields):
    return BoxesPart(boxes=tuple(Region(label=label, box=box) for box in numbers or (BOX,)), **fields)


def answer_of(p, messages, media):
    """The words that are learned."""
    tokens = p.render(messages, media)
    return p.tokenizer.decode([i for i, s in zip(tokens.input_ids, tokens.supervised, strict=True) if s][:-1])


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ({"fit": "pad"}, "[0.25, 0.25, 0.50, 0.75]"),
        ({"fit": "crop"}, "[0.00, 0.00, 0.50, 1.00]"),
        ({"fit": "stretch"}, "[0.25, 0.00, 0.50, 1.00]"),
        ({"fit": "pad", "tiling": "anyres"}, "[0.25, 0.00, 0.50, 1.00]"),
        ({"fit": "pad", "tiling": "grid"}, "[0.25, 0.00, 0.50, 1.00]"),
    ],
)
def test_llavas_shares_are_over_the_square_that_the_encoder_sees(image, expected):
    assert answer_of(processor(**image), conversation((boxes(),)), [(100, 200)]) == expected


def test_pixels_of_the_resized_image_follow_the_tiles():
    whole, tiled = processor("qwen25_vl_json", fit="stretch"), processor("qwen25_vl_json", tiling="grid", max_tiles=6)
    assert '"bbox_2d": [4, 0, 8, 16]' in answer_of(whole, conversation((boxes(),)), [(100, 200)])
    assert '"bbox_2d": [8, 0, 16, 16]' in answer_of(tiled, conversation((boxes(),)), [(10, 20)])


def test_boxes_in_pixels_and_in_shares_are_the_same_boxes():
    for name in BOX_FORMATS:
        p = processor(name)
        pixels = boxes((50, 0, 100, 100), unit="pixels", label="it")
        assert answer_of(p, conversation((pixels,)), [(100, 200)]) == answer_of(
            p, conversation((boxes(label="it"),)), [(100, 200)]
        )


def test_boxes_stand_among_the_words_and_each_is_of_its_image():
    part = (TextPart(text="It is at "), boxes(), TextPart(text=", and here: "), boxes((0, 0, 1, 1), image=1))
    answer = answer_of(processor(), conversation(part, images=2), [(100, 200), (200, 100)])
    assert answer == "It is at [0.25, 0.25, 0.50, 0.75], and here: [0.25, 0.00, 0.75, 1.00]"


@pytest.mark.parametrize("prompt_format", [*PROMPT_FORMATS, "native"])
@pytest.mark.parametrize("box_format", BOX_FORMATS)
def test_boxes_are_rendered_as_their_text_would_be_and_a_prompt_stays_a_prefix(prompt_format, box_format):
    p = processor(box_format, prompt_format)
    question = (ImagePart(), TextPart(text="what is at "), boxes(), TextPart(text="?"))
    as_data = [Message(role="user", content=question), Message(role="assistant", content=(boxes(label="a cat"),))]
    frame = p.frame((100, 200), p.planner.plan([(100, 200)])[0])
    written = [BOX_FORMATS.get(box_format).write(part.boxes, frame) for part in (boxes(), boxes(label="a cat"))]
    asked = (ImagePart(), TextPart(text=f"what is at {written[0]}?"))
    as_text = [Message(role="user", content=asked), Message(role="assistant", content=written[1])]
    ids = p.render(as_data, [(100, 200)]).input_ids
    assert ids == p.render(as_text, [(100, 200)]).input_ids
    prompt = p.render(as_data[:1], [(100, 200)], generation=True).input_ids
    assert ids[: len(prompt)] == prompt


def test_an_answer_is_read_as_it_was_written():
    for name in BOX_FORMATS:
        p = processor(name)
        frame = p.frame((100, 200), p.planner.plan([(100, 200)])[0])
        (region,) = p.read_boxes(answer_of(p, conversation((boxes(label="a cat"),)), [(100, 200)]), frame)
        assert region.label == "a cat" and region.box == pytest.approx(BOX, abs=1 / 16)


def test_only_a_conversation_with_boxes_has_its_images_measured():
    p = processor()
    assert not p.measures(conversation("it")) and p.measures(conversation((boxes(),)))
    assert p.read_sizes(conversation("it"), ["there is no such file.png"], opens_all=False) == [(16, 16)]
    with pytest.raises(UserError, match="does not exist"):
        p.read_sizes(conversation((boxes(),)), ["there is no such file.png"], opens_all=False)


def test_a_shape_that_the_format_lacks_is_refused_by_name():
    part = BoxesPart(boxes=(Region(point=(0.5, 0.5)),))
    with pytest.raises(
        ConversationRefusedError, match=r"this box format has no point; it writes: box \(model.box_format\)"
    ):
        processor().render(conversation((part,)), [(10, 10)])
    assert answer_of(processor("qwen2_vl"), conversation((part,)), [(10, 10)]) == "<|box_start|>(500,500)<|box_end|>"


@pytest.mark.parametrize(
    ("messages", "images", "words"),
    [
        (conversation((boxes(),), images=0), 0, r"boxes of image 0, but 0 image\(s\) before them"),
        (conversation((boxes(image=1),)), 1, r"boxes of image 1, but 1 image\(s\) before them"),
        (conversation((boxes((0.1, float("nan"), 0.2, 0.3)),)), 1, "a coordinate that is no number"),
        (conversation((boxes((0.5, 0.1, 0.2, 0.3)),)), 1, "corners the other way round"),
    ],
)
def test_boxes_that_are_none_are_refused_in_a_line(messages, images, words):
    with pytest.raises(BadSampleError, match=words):
        check_turns("s", tuple(messages), images)


def test_pixels_of_a_prompt_are_those_without_boxes():
    p = processor()
    with_boxes, plain = (p.render(conversation(a), [(100, 200)]) for a in ((boxes(),), "it"))
    assert with_boxes.visuals == plain.visuals and with_boxes.image_spans == plain.image_spans
    assert torch.equal(torch.tensor(with_boxes.input_ids[:20]), torch.tensor(plain.input_ids[:20]))
