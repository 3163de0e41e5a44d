"""What goes wrong in silence elsewhere, shown beside what is done here: the same samples by the other rule, and by ours."""

import dataclasses

import torch
from PIL import Image

from mllm.data.collate import collate
from mllm.data.example import render_example
from mllm.data.packing import pack
from tests.helpers.samples import fail


def packed(samples, processor):
    rows = pack([render_example(sample, processor, 2000) for sample in samples], "samples", 2000)
    return rows[0].segments[0].length, collate(rows, processor, fail)


def test_samples_told_apart_by_their_positions_see_each_other_where_positions_have_several_axes(named, samples):
    model, processor = named("several_axes")
    first, batch = packed(samples[:2], processor)
    changed = dataclasses.replace(batch, input_ids=batch.input_ids.clone())
    changed.input_ids[0, first - 4 : first - 1] = 7

    def by_positions(batch):
        """transformers' own rule for a row without a mask: a sample begins where positions do."""
        inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, **batch.media}
        return model.peer.base_model(**inputs, use_cache=False).last_hidden_state[:, first:]

    with torch.no_grad():
        assert (by_positions(batch) - by_positions(changed)).abs().max() > 1e-3
        ours = [model.hidden_states(own)[:, first:] for own in (batch, changed)]
        assert torch.equal(*ours)


def test_images_of_a_row_prepared_as_one_list_are_not_those_of_its_samples(named, samples):
    model, processor = named("whole_samples")
    sizes = [(24, 70), (40, 18)]
    images = [Image.new("RGB", (width, height)) for height, width in sizes]
    token = processor.peer.image_token
    listed = processor.peer(text=[token * 2], images=[images])["input_ids"][0]
    alone = [processor.peer(text=[token], images=[[image]])["input_ids"][0] for image in images]
    assert len(listed) != sum(map(len, alone))
    one, another = samples[0], dataclasses_sample(samples)
    _, batch = packed([one, another], processor)
    rendered = [render_example(sample, processor, 2000).tokens.image_spans[0][1] for sample in (one, another)]
    assert rendered == [len(own) for own in alone]
    with torch.no_grad():
        assert model.logits(batch).isfinite().all()


def dataclasses_sample(samples):
    """A sample of one image, which is the first of the sample of two."""
    two = samples[3]
    question = two.messages[0].model_copy(update={"content": two.messages[0].content[1:]})
    return two.model_copy(update={"id": "first", "images": two.images[:1], "messages": (question, two.messages[1])})


def test_a_mask_of_the_templates_own_learns_nothing_where_the_template_marks_no_answers(named, samples):
    _, processor = named("rows_and_columns")
    turns = [
        {"role": message.role, "content": [{"type": "text", "text": part.text} for part in message.content]}
        for message in samples[2].messages
    ]
    theirs = processor.format.tokenizer.apply_chat_template(
        turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert not any(theirs["assistant_masks"])
    ours = processor.render(samples[2].messages)
    assert list(ours.input_ids) == theirs["input_ids"] and ours.supervised_count > 0
