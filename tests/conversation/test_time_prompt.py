"""Videos in a prompt: their image tokens where they stand, and LLaVA-Video's sentence about their times behind them."""

from dataclasses import replace

import pytest

from mllm.conversation.schema import ImagePart, Message, TextPart, VideoPart
from mllm.media.prepare import ImagePreparer
from mllm.media.visual import Clip, ImageGeometry
from mllm.processor import Processor, square_planner
from tests.helpers.tiny import byte_tokenizer

GEOMETRY = ImageGeometry(image_size_px=16, patch_size_px=8)
PREPARER = ImagePreparer(16, (0.5,) * 3, (0.5,) * 3)
CLIP = Clip(48, 80, tuple(number / 15 for number in range(40)))
SENTENCE = (
    "The video lasts for 2.67 seconds, and 4 frames are uniformly sampled from it. These frames are located at "
    "0.00s,0.87s,1.73s,2.60s.Please answer the following questions related to this video."
)
ASKED = Message(role="user", content=(VideoPart(), TextPart(text="What happens?")))
TALK = (ASKED, Message(role="assistant", content="A ball falls."))


def processor(format_name, time_prompt):
    plain = square_planner(GEOMETRY)
    planner = replace(plain, clips=replace(plain.clips, frames=4, time_prompt=time_prompt))
    return Processor(byte_tokenizer(), format_name, GEOMETRY, PREPARER, planner=planner)


def text(p, messages, media):
    """The prompt with the image tokens of an image or video as one sign."""
    tokens = p.render(messages, media)
    ids = list(tokens.input_ids)
    for start, count in reversed(tokens.image_spans):
        ids[start : start + count] = [p.image_token_id]
    return p.tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("format_name", "opening"),
    [
        ("chatml", "<|im_start|>user\n<image>\n"),
        ("llama_3", "<|end_header_id|>\n\n<image>\n"),
        ("native", "user\n<image>\n"),
    ],
)
def test_the_times_of_the_frames_stand_between_the_video_and_the_question(format_name, opening):
    p = processor(format_name, "llava_video")
    prompt = text(p, TALK, [CLIP])
    assert f"{opening}{SENTENCE}\nWhat happens?" in prompt
    assert SENTENCE not in text(processor(format_name, "none"), TALK, [CLIP])
    trained, asked = p.render(TALK, [CLIP]), p.render(TALK[:1], [CLIP], generation=True)
    assert trained.input_ids[: len(asked.input_ids)] == asked.input_ids
    assert trained.visuals[0].token_count == 4 * GEOMETRY.tokens_per_tile == trained.image_spans[0][1]


def test_each_video_has_its_own_times_and_an_image_none():
    short = Clip(48, 80, (0.0, 0.5))
    message = Message(
        role="user", content=(ImagePart(), VideoPart(), TextPart(text="a"), VideoPart(), TextPart(text="b"))
    )
    prompt = text(processor("chatml", "llava_video"), (message,), [(20, 10), CLIP, short])
    assert f"user\n<image>\n<image>\n{SENTENCE}\na<image>\nThe video lasts for 1.00 seconds, and 4 frames" in prompt
    assert "located at 0.00s,0.00s,0.00s,0.50s.Please" in prompt


def test_the_first_stages_format_drops_the_sentence_with_the_other_words():
    p = processor("plain", "llava_video")
    assert text(p, TALK, [CLIP]) == "<image>A ball falls.\n"
