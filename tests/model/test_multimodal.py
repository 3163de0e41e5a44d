"""The assembly: splice, parity with transformers' LLaVA, packing, saving."""

import dataclasses

import pytest
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from mllm.batch import answers_of
from mllm.checkpoint import ours as checkpoint
from mllm.checkpoint.start import build, load_processor
from mllm.conversation.schema import ImagePart, Message, TextPart
from mllm.data.collate import collate
from mllm.data.example import render_example
from mllm.data.packing import pack
from mllm.errors import UserError
from mllm.inference.generate import Request, generate_batch
from mllm.kernels.log_probs import answer_sums
from mllm.model.settings import ModelSettings, TrainableSettings
from mllm.model.trainable import apply_policy
from tests.helpers.samples import batch_of, fail, loss_and_gradients, sample
from tests.helpers.tiny import tiny_settings


def transformers_llava(model, processor, encoder="clip"):
    """The same weights in transformers' own class."""
    config = LlavaConfig(
        vision_config=model.vision_encoder.model.config,
        text_config=model.language_model.config,
        image_token_index=processor.image_token_id,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default" if encoder == "clip" else "full",
        projector_hidden_act="gelu",
    )
    peer = LlavaForConditionalGeneration(config).eval()
    state = {
        f"model.language_model.{k.removeprefix('model.')}": v
        for k, v in model.language_model.state_dict().items()
        if k != "lm_head.weight"
    }
    state["lm_head.weight"] = model.language_model.state_dict()["lm_head.weight"]
    state |= {f"model.vision_tower.{k}": v for k, v in model.vision_encoder.model.state_dict().items()}
    state |= {f"model.multi_modal_projector.{k}": v for k, v in model.projector.folded_state().items()}
    missing, unexpected = peer.load_state_dict(state, strict=False)
    assert not unexpected and not missing
    return peer


@pytest.mark.parametrize("encoder", ["clip", "siglip"])
def test_logits_equal_transformers_llava(tiny_parts, samples, encoder):
    model, processor = build(tiny_settings(tiny_parts, encoder))
    model.eval()
    batch = batch_of(samples, processor, "none")
    peer = transformers_llava(model, processor, encoder)
    with torch.no_grad():
        ours = model.logits(batch)
        mask = (batch.segment_ids >= 0).long()
        theirs = peer(input_ids=batch.input_ids, pixel_values=batch.normalized_tiles(), attention_mask=mask).logits
    real = mask.bool()
    assert (ours[real] - theirs[real]).abs().max() < 1e-4


def test_log_probs_of_answers_on_shared_trunks_equal_those_of_transformers_llava_on_single_rows(tiny_parts, samples):
    model, processor = build(tiny_settings(tiny_parts))
    model.eval()
    peer, image = transformers_llava(model, processor), samples[0].images
    asked = [("is it red", ("yes it is", "no")), ("what is this", ("a cat and a dog", "a red dog", "yes"))]
    sides = [sample(question, question, answer, image) for question, answers in asked for answer in answers]
    batch = batch_of(sides, processor, "shared_prefix")
    assert batch.bounds.has_trunks and len(batch.input_ids) == 1
    places, lengths = answers_of(batch)
    with torch.no_grad():
        ours = answer_sums(model(batch, by_token=True), lengths)
        for side, found in zip(sides, ours, strict=True):
            alone = batch_of([side], processor, "none")
            logits = peer(input_ids=alone.input_ids, pixel_values=alone.normalized_tiles()).logits[0]
            log_probs = logits[alone.target_places].log_softmax(-1).gather(1, alone.target_ids[:, None])
            assert found.item() == pytest.approx(log_probs.double().sum().item(), rel=1e-6)
    assert [segment for _, segment in places] == [1, 2, 3, 4, 5]
    # What ends an answer is one of its tokens.
    assert batch.target_ids[lengths.cumsum(0) - 1].eq(processor.stop_token_ids[0]).all()


@pytest.mark.parametrize("policy", ["full", "lora"])
@pytest.mark.parametrize("packing", ["samples", "shared_prefix"])
def test_packed_loss_and_gradients_equal_unpacked(tiny_parts, samples, packing, policy):
    model, processor = build(tiny_settings(tiny_parts))
    lora = {"rank": 4, "alpha": 8, "dropout": 0.0}
    apply_policy(model, TrainableSettings(vision_encoder="full", language_model=policy, lora=lora))
    alone = [batch_of([s], processor, "none") for s in samples]
    packed = batch_of(samples, processor, packing)
    assert packed.input_ids.shape[0] == 1
    if packing == "shared_prefix":
        assert packed.input_ids.shape[1] < sum(b.input_ids.shape[1] for b in alone)
    assert packed.target_count == sum(b.target_count for b in alone)
    loss_a, grads_a = loss_and_gradients(model, alone)
    loss_p, grads_p = loss_and_gradients(model, [packed])
    assert loss_p == pytest.approx(loss_a, rel=1e-5)
    assert grads_a.keys() == grads_p.keys()
    for name, gradient in grads_a.items():
        assert torch.allclose(gradient, grads_p[name], rtol=1e-3, atol=2e-5), name


@pytest.mark.parametrize("packing", ["samples", "shared_prefix"])
def test_changing_one_sample_leaves_the_others_logits(tiny_parts, samples, packing):
    model, processor = build(tiny_settings(tiny_parts))
    for mode in (model.eval, model.train):
        mode()
        batch = batch_of(samples, processor, packing)
        changed = batch.input_ids.clone()
        last = batch.segment_ids.max()
        own = batch.segment_ids == last
        own &= batch.input_ids != processor.image_token_id
        changed[own] = (changed[own] + 7) % 50
        with torch.no_grad():
            before, after = model.logits(batch), model.logits(dataclasses.replace(batch, input_ids=changed))
        children = {int(last), *(i for i, p in enumerate(batch.parent_segment[0].tolist()) if p == int(last))}
        others = ~torch.isin(batch.segment_ids, torch.tensor(sorted(children)))
        assert torch.equal(before[others], after[others])
        assert not torch.equal(before[own], after[own])


def test_image_count_mismatch_names_the_sample(tiny_parts, samples):
    model, processor = build(tiny_settings(tiny_parts))
    batch = batch_of(samples[:1], processor, "none")
    wrong = dataclasses.replace(batch, visuals=(dataclasses.replace(batch.visuals[0], token_count=15),))
    with pytest.raises(UserError, match="'a'"):
        model(wrong)
    fewer = dataclasses.replace(batch, image_places=batch.image_places[1:])
    with pytest.raises(UserError, match=r"15 image tokens but 16 image features \(1 images\) in samples a"):
        model(fewer)
    with pytest.raises(UserError, match="16 image tokens but 0 image features"):
        model(dataclasses.replace(batch, media={}))


def test_text_only_batch_trains_every_part_with_a_zero_gradient(tiny_parts, samples):
    model, processor = build(tiny_settings(tiny_parts))
    apply_policy(model, TrainableSettings())
    model.train()
    model(batch_of([samples[2]], processor, "none")).backward()
    assert all(p.grad is not None and p.grad.abs().max() == 0 for p in model.projector.parameters())


def test_batch_without_targets_has_loss_zero_and_finite_gradients(tiny_parts, samples):
    model, processor = build(tiny_settings(tiny_parts))
    apply_policy(model, TrainableSettings(language_model="full"))
    batch = batch_of(samples, processor, "samples")
    loss = model(dataclasses.replace(batch, target_places=batch.target_places[:0], target_ids=batch.target_ids[:0]))
    loss.backward()
    assert loss.item() == 0.0
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_padding_to_a_multiple_and_pixels_as_bytes_change_neither_loss_nor_gradients(tiny_parts, samples):
    model, processor = build(tiny_settings(tiny_parts))
    apply_policy(model, TrainableSettings(language_model="full", vision_encoder="full"))
    rows = pack([render_example(s, processor, 400) for s in samples], "shared_prefix", 100)

    def prepared(path, visual):
        return processor.read_tiles(path, visual)

    plain, padded = collate(rows, processor, fail, prepared), collate(rows, processor, fail, length_multiple=128)
    assert plain.input_ids.shape[1] % 128 and padded.input_ids.shape[1] % 128 == 0
    assert (plain.tiles.dtype, padded.tiles.dtype) == (torch.float32, torch.uint8)
    (loss_a, grads_a), (loss_b, grads_b) = (loss_and_gradients(model, [batch]) for batch in (plain, padded))
    assert loss_b == pytest.approx(loss_a, rel=1e-6) and grads_a.keys() == grads_b.keys()
    for name, gradient in grads_a.items():
        assert torch.allclose(gradient, grads_b[name], rtol=1e-4, atol=1e-6), name


def test_frozen_token_embeddings_stay_while_the_rest_of_the_language_model_learns(tiny_parts, samples):
    model, processor = build(tiny_settings(tiny_parts))
    counts = apply_policy(model, TrainableSettings(language_model="full", token_embeddings="frozen"))
    embedding = model.language_model.get_input_embeddings().weight
    language_model = next(c for c in counts if c.part == "language_model")
    assert language_model.trainable == language_model.total - embedding.numel()  # tied: one weight for both ends
    model.train()
    model(batch_of(samples, processor, "samples")).backward()
    learning = [p for p in model.language_model.parameters() if p is not embedding]
    assert embedding.grad is None and all(p.grad is not None and p.grad.abs().max() > 0 for p in learning)


@pytest.mark.parametrize("policy", ["full", "lora"])
@pytest.mark.parametrize("shuffle", [1, 2])
def test_saved_model_loads_with_equal_logits_whatever_its_folder_is_called(
    tiny_parts, samples, tmp_path, policy, shuffle
):
    model, processor = build(tiny_settings(tiny_parts, shuffle=shuffle))
    lora = {"rank": 4, "alpha": 8, "dropout": 0.0}
    apply_policy(model, TrainableSettings(language_model=policy, lora=lora))
    model.eval()
    for parameter in model.parameters():
        parameter.data.add_(0.01 * torch.randn_like(parameter))
    checkpoint.save(tmp_path / "llava-v1.5-qwen", model, processor)
    (tmp_path / "llava-v1.5-qwen").rename(tmp_path / "anything")
    loaded, loaded_processor = checkpoint.load(tmp_path / "anything")
    batch = batch_of(samples, processor, "samples")
    assert torch.equal(batch_of(samples, loaded_processor, "samples").input_ids, batch.input_ids)
    with torch.no_grad():
        assert torch.allclose(loaded.logits(batch), model.logits(batch), atol=1e-6)


def test_a_processor_loaded_alone_is_the_one_the_run_trains_with(tiny_parts, tmp_path):
    settings = tiny_settings(tiny_parts)
    model, processor = build(settings)
    checkpoint.save(tmp_path / "model", model, processor)
    assert load_processor(settings).preparer == processor.preparer
    second = ModelSettings(init_from=str(tmp_path / "model"), prompt_format="vicuna_v1", image={"fit": "crop"})
    loaded, trained_with = checkpoint.load(tmp_path / "model", second.prompt_format, second.image)
    alone = load_processor(second)
    assert alone.preparer == trained_with.preparer and alone.preparer.fit == loaded.image_settings.fit == "crop"
    assert alone.format_name == trained_with.format_name == "vicuna_v1"
    assert alone.geometry == trained_with.geometry


def test_pickles_missing_and_unused_weights_are_refused(tiny_parts, tmp_path):
    from safetensors.torch import load_file, save_file

    model, processor = build(tiny_settings(tiny_parts))
    path = tmp_path / "model"
    checkpoint.save(path, model, processor)
    weights = load_file(path / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k != "projector.linear_2.bias"}, path / "model.safetensors")
    with pytest.raises(UserError, match="missing"):
        checkpoint.load(path)
    save_file(weights | {"projector.extra": torch.zeros(1)}, path / "model.safetensors")
    with pytest.raises(UserError, match="unused"):
        checkpoint.load(path)
    (path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="pickle"):
        checkpoint.load(path)


def test_greedy_answers_at_batch_1_equal_batch_n(tiny_parts, images):
    model, processor = build(tiny_settings(tiny_parts))
    requests = [
        Request((Message(role="user", content=(ImagePart(), TextPart(text="what is this " * n))),), (images[n % 3],))
        for n in range(1, 5)
    ]
    requests.append(Request((Message(role="user", content="hello"),)))
    together = generate_batch(model, processor, requests, max_new_tokens=8, batch_size=5)
    alone = [generate_batch(model, processor, [r], max_new_tokens=8)[0] for r in requests]
    assert together == alone
