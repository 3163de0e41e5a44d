"""A model of transformers on packed rows computes what it computes of each sample alone."""

import dataclasses

import pytest
import torch
from torch.nn.attention import flex_attention

from mllm.batch import PADDING_SEGMENT
from mllm.data.collate import collate
from mllm.data.example import render_example
from mllm.data.packing import pack
from mllm.kernels.precision import cast_parameters
from mllm.model.public import PublicModel, wrap
from tests.helpers.public_models import MAKERS, tiny
from tests.helpers.samples import batch_of, fail, loss_and_gradients

TOLERANCE = 1e-5


@pytest.fixture(params=MAKERS)
def wrapped(request, named):
    return named(request.param)


def rows_of(samples, processor, packing="samples"):
    return pack([render_example(s, processor, 2000) for s in samples], packing, 2000)


def hidden_by_place(model, rows, batch):
    """(sample, place in the sample) → hidden state, for what isn't shared."""
    hidden, found = model.hidden_states(batch), {}
    for r, row in enumerate(rows):
        offset = 0
        for segment in row.segments:
            for place in range(segment.start, segment.stop):
                found[segment.example.sample_id, place] = hidden[r, offset + place - segment.start]
            offset += segment.length
    return found


def test_a_sample_alone_has_the_logits_of_transformers_itself(wrapped, samples):
    model, processor = wrapped
    for own in samples:
        example = render_example(own, processor, 2000)
        batch = batch_of([own], processor, "none", 2000)
        inputs = {"input_ids": batch.input_ids, **batch.media}
        if model.carried.token_types is not None:
            inputs[model.carried.token_types] = batch.token_types
        with torch.no_grad():
            theirs, ours = model.peer(**inputs).logits, model.logits(batch)
        length = example.length if own.images else None
        if not own.images:
            inputs = {name: tensor[:, : example.length] for name, tensor in inputs.items() if name not in batch.media}
            length, theirs = example.length, model.peer(**inputs).logits
        assert torch.allclose(ours[:, :length], theirs[:, :length], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("packing", ["samples", "shared_prefix"])
def test_packed_rows_have_the_states_loss_and_gradients_of_each_sample_alone(wrapped, samples, packing):
    model, processor = wrapped
    packed, alone = rows_of(samples, processor, packing), [rows_of([own], processor) for own in samples]
    batches = [collate(rows, processor, fail) for rows in alone]
    together = collate(packed, processor, fail)
    with torch.no_grad():
        expected = {}
        for rows, batch in zip(alone, batches, strict=True):
            expected |= hidden_by_place(model, rows, batch)
        for key, state in hidden_by_place(model, packed, together).items():
            assert torch.allclose(state, expected[key], rtol=0, atol=TOLERANCE), key
    assert packing == "samples" or (len(together.bounds.trunk_places) > 0) == model.is_causal
    loss, slopes = loss_and_gradients(model, [together])
    loss_alone, slopes_alone = loss_and_gradients(model, batches)
    assert loss == pytest.approx(loss_alone, abs=1e-4)
    assert slopes.keys() == slopes_alone.keys()
    for name, slope in slopes.items():
        assert torch.allclose(slope, slopes_alone[name], rtol=1e-4, atol=TOLERANCE), name


def test_changing_one_sample_leaves_the_others_as_they_are(wrapped, samples):
    model, processor = wrapped
    rows = rows_of(samples, processor)
    assert len(rows) == 1
    batch = collate(rows, processor, fail)
    first = rows[0].segments[0].length
    changed = batch.input_ids.clone()
    changed[0, first - 4 : first - 1] = 7
    with torch.no_grad():
        before = model.hidden_states(batch)
        after = model.hidden_states(dataclasses.replace(batch, input_ids=changed))
    assert torch.equal(before[:, first:], after[:, first:]) and not torch.equal(before, after)


def test_labels_are_the_answers_and_a_prompt_is_the_beginning_of_what_is_trained(wrapped, samples):
    _, processor = wrapped
    for own in samples:
        tokens = processor.render(own.messages, processor.read_sizes(own.messages, own.images))
        words = processor.tokenizer.decode(
            [token for token, flag in zip(tokens.input_ids, tokens.supervised, strict=True) if flag]
        )
        assert words == "".join(f"{m.text}<|im_end|>" for m in own.messages if m.role == "assistant")
        question = own.messages[:1]
        media = processor.read_sizes(question, own.images[: question[0].image_count])
        alone = processor.render(question, media, generation=True)
        if own.id != "later":
            assert tokens.input_ids[: len(alone.input_ids)] == alone.input_ids


def test_rows_of_a_batch_are_each_as_alone(wrapped, samples):
    model, processor = wrapped
    rows = rows_of(samples, processor, "none")
    batch = collate(rows, processor, fail, length_multiple=16)
    with torch.no_grad():
        together = hidden_by_place(model, rows, batch)
        for row in rows:
            alone = hidden_by_place(model, [row], collate([row], processor, fail))
            for key, state in alone.items():
                assert torch.allclose(state, together[key], rtol=0, atol=TOLERANCE), key


def test_words_alone_give_every_tensor_a_gradient_and_images_none_but_zeros(wrapped, samples):
    model, processor = wrapped
    words = batch_of([samples[2]], processor, "samples", 2000)
    with_image = batch_of([samples[0]], processor, "samples", 2000)
    loss, slopes = loss_and_gradients(model.train(), [words])
    _, of_image = loss_and_gradients(model, [with_image])
    model.eval()
    assert loss > 0 and slopes.keys() == of_image.keys()
    eyes = {name for name in slopes if model.part_of(name) == "vision_encoder"}
    assert eyes and all(not slopes[name].any() for name in eyes)
    assert any(of_image[name].any() for name in eyes)


@pytest.mark.parametrize("name", ["several_axes", "spans_and_windows"])
def test_recomputed_activations_and_narrow_numbers_give_the_same_loss(name, samples):
    model, processor = wrap(*tiny(name))
    batch = batch_of(samples, processor, "samples", 2000)
    loss, slopes = loss_and_gradients(model.train(), [batch])
    with torch.autocast("cpu", torch.bfloat16):
        assert model(batch).item() == pytest.approx(loss, rel=1e-2)
    model.checkpoint_activations()
    again, slopes_again = loss_and_gradients(model, [batch])
    assert again == loss
    assert all(torch.allclose(slope, slopes_again[key], rtol=1e-5, atol=TOLERANCE) for key, slope in slopes.items())
    cast_parameters(model, torch.bfloat16)
    assert model(batch).item() == pytest.approx(loss, rel=1e-2)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_masks_of_blocks_give_the_states_and_gradients_of_dense_ones(named, samples, monkeypatch):
    """FlexAttention refuses a backward on a CPU, where it is not meant for training but gives the right gradients."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    (dense, processor), peer = named("spans_and_windows"), tiny("spans_and_windows")[0]
    blocks = PublicModel(peer, "flex")
    assert (dense.attention_kernel, blocks.attention_kernel) == ("mask", "flex")
    assert PublicModel(peer, "varlen").attention_kernel == "mask"
    batch = collate(rows_of(samples, processor), processor, fail, length_multiple=16)
    for ours, theirs in zip(*(loss_and_gradients(model, [batch]) for model in (blocks, dense)), strict=True):
        if isinstance(ours, float):
            assert ours == pytest.approx(theirs, abs=1e-4)
        else:
            assert all(torch.allclose(slope, theirs[name], rtol=0, atol=TOLERANCE) for name, slope in ours.items())
    with torch.no_grad():
        real = batch.segment_ids != PADDING_SEGMENT
        states = [model.hidden_states(batch)[real] for model in (blocks, dense)]
    assert torch.allclose(*states, rtol=0, atol=TOLERANCE)
