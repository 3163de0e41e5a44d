"""Captions in prompts: a function of seed, step and place, in the share that is asked for."""

import pytest

from mllm.contrastive.caption_prompts import Prompter, PromptSettings
from mllm.errors import UserError
from mllm.settings import validate_settings
from tests.helpers.clip import batcher_of


def test_a_share_of_captions_stands_in_prompts_without_their_article():
    prompter = Prompter(PromptSettings(share=0.5, templates=("a photo of a {}.", "{}")), seed=3)
    read = [prompter("A red circle", 7, place) for place in range(400)]
    assert set(read) == {"A red circle", "red circle", "a photo of a red circle."}
    assert 160 < read.count("A red circle") < 240 and 60 < read.count("red circle") < 140
    assert read == [prompter("A red circle", 7, place) for place in range(400)]
    assert read != [prompter("A red circle", 8, place) for place in range(400)]
    assert Prompter(PromptSettings(), seed=3)("A red circle", 7, 0) == "A red circle"


def test_prompts_change_what_is_read_and_not_which_pairs_are_alike(pairs, tmp_path):
    plain, asked = (batcher_of(pairs, tmp_path, data__prompts={"share": share}) for share in (0.0, 1.0))
    assert plain.batch(0).same.tolist() == asked.batch(0).same.tolist()
    texts = asked.tokenizer.batch_decode(asked.batch(0).input_ids, skip_special_tokens=True)
    assert any(text.startswith("a photo of") for text in texts)
    lengths = [len(batcher.tokenizer("a photo of").input_ids) for batcher in (plain, asked)]
    assert lengths[1] < lengths[0]  # the tokenizer has learned the words of prompts
    halves = [asked.batch(0, rank, 2).input_ids for rank in (0, 1)]
    assert [t for ids in halves for t in asked.tokenizer.batch_decode(ids, skip_special_tokens=True)] == texts


@pytest.mark.parametrize(
    ("values", "message"), [({"templates": ["a photo"]}, "hold {} once"), ({"share": 1, "templates": []}, "are empty")]
)
def test_prompts_without_a_place_for_the_caption_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        validate_settings(PromptSettings, values, "test")
