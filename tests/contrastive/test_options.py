"""What a run may do beside the plain step: drop patches, recompute, average, be taught, go on from a model, be measured."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mllm.checkpoint.dual import build_dual, load_dual
from mllm.contrastive.features import dual_features
from mllm.contrastive.loss import gathered
from mllm.contrastive.rates import dual_parts
from mllm.contrastive.run import train_clip
from mllm.contrastive.settings import ClipOptimizerSettings, ContrastiveSettings
from mllm.contrastive.task import ContrastiveTask
from mllm.contrastive.teacher import Teacher, distilled_sum
from mllm.data.readers import READERS
from mllm.errors import UserError
from mllm.inference.dual_features import load_encoder
from mllm.settings import validate_settings
from tests.helpers.clip import COLOURS, batcher_of, train, values_of
from tests.helpers.runs import metrics, series
from tests.helpers.tiny import save_image


def model_of(pairs, tmp_path, batcher, **changes):
    values = values_of(pairs, tmp_path, **changes)
    torch.manual_seed(0)
    return build_dual(validate_settings(ContrastiveSettings, values, "test").model, batcher.tokenizer, False)


@pytest.mark.parametrize("layout", ["clip", "siglip"])
def test_features_of_some_patches_are_those_of_an_image_side_that_sees_only_these(pairs, tmp_path, layout):
    sizes = {"model__layout": layout, "model__embedding_width": 64}
    batcher = batcher_of(pairs, tmp_path, model__patch_dropout=0.5, **sizes)
    batch = batcher.batch(0)
    assert batch.patches.shape == (8, 2) and len({tuple(kept) for kept in batch.patches.tolist()}) > 1
    shares = torch.cat([batcher.batch(0, rank, 2).patches for rank in (0, 1)])
    assert torch.equal(shares, batch.patches) and not torch.equal(batcher.batch(1).patches, batch.patches)
    model = model_of(pairs, tmp_path, batcher, **sizes).eval()
    image, _ = dual_features(model, batch)
    embeddings = model.vision_model.embeddings
    embedded = embeddings(batch.pixel_values)
    front = embedded.shape[1] - 4
    kept = torch.stack(
        [torch.cat([row[:front], row[front:][own]]) for row, own in zip(embedded, batch.patches, strict=True)]
    )
    embeddings.forward = lambda *_, **__: kept
    expected = model.get_image_features(batch.pixel_values).pooler_output
    assert torch.allclose(F.normalize(image), F.normalize(expected), atol=1e-6)


def test_recomputed_layers_and_chunks_with_dropped_patches_have_the_gradients_of_the_plain_step(pairs, tmp_path):
    batcher = batcher_of(pairs, tmp_path, model__patch_dropout=0.5)
    model, found = model_of(pairs, tmp_path, batcher), []
    for chunk in (None, 3):
        model.zero_grad()
        task = ContrastiveTask(batcher, "infonce", chunk)
        for micro_batch in task.window(0, 0, 1).micro_batches:
            task.loss(model, micro_batch).loss_sum.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters()})
        model.gradient_checkpointing_enable({"use_reentrant": False})
    largest = max(gradient.abs().max() for gradient in found[0].values())
    assert all((found[1][name] - gradient).abs().max() < 1e-5 * largest for name, gradient in found[0].items())


def test_layers_learn_the_more_the_nearer_they_are_to_the_features(pairs, tmp_path):
    batcher = batcher_of(pairs, tmp_path)
    config = model_of(pairs, tmp_path, batcher, model__vision_layers=3).config
    optim = ClipOptimizerSettings(lr=1.0, layer_decay_vision_encoder=0.5, lr_text_encoder=0.1)
    rate = dual_parts(config, optim)
    assert [rate(f"vision_model.encoder.layers.{n}.mlp.fc1.weight").factor for n in range(3)] == [0.125, 0.25, 0.5]
    assert rate("vision_model.embeddings.class_embedding") == rate("vision_model.pre_layrnorm.bias")
    assert rate("vision_model.embeddings.class_embedding") == ("vision_encoder", 0.0625)
    assert rate("vision_model.post_layernorm.bias") == rate("visual_projection.weight") == ("vision_encoder", 1.0)
    assert rate("text_model.encoder.layers.0.mlp.fc1.weight") == rate("text_projection.weight") == ("text_encoder", 1.0)
    assert rate("logit_scale").part == "temperature"


def test_a_teachers_loss_is_open_clips():
    found = importlib.util.find_spec("open_clip")
    if found is None:
        pytest.skip("open_clip_torch is not installed")
    spec = importlib.util.spec_from_file_location("open_clip_loss", Path(found.origin).parent / "loss.py")
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    torch.manual_seed(0)
    own, taught = ((F.normalize(torch.randn(9, 8)), F.normalize(torch.randn(9, 8))) for _ in range(2))
    factor = torch.tensor(7.0)
    mine = distilled_sum(gathered(*own), factor, gathered(*taught), 20.0) / 9
    _, expected = theirs.DistillClipLoss()(*own, factor, *taught, torch.tensor(20.0))
    assert mine.item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The pairs of a run of a few steps, and the run."""
    from tests.helpers.clip import write_pairs

    root = tmp_path_factory.mktemp("options")
    pairs = write_pairs(root)
    train(values_of(pairs, root / "run", train__epochs=6))
    return pairs, root / "run"


@pytest.mark.slow
def test_a_run_goes_on_from_both_sides_of_a_model_with_its_tokenizer_and_pixels(trained, tmp_path):
    pairs, run = trained
    first = load_encoder(run)
    values = values_of(pairs, tmp_path / "more", model__init_from=str(run), train__max_steps=1, optim__lr=1e-9)
    final = train({**values, "model": {"init_from": str(run)}})
    second, checkpoint = load_encoder(final), load_encoder(next((tmp_path / "more" / "checkpoints").glob("*/model")))
    assert second.tokenizer.get_vocab() == first.tokenizer.get_vocab()
    assert second.preparer == checkpoint.preparer == first.preparer and first.preparer.fit == "pad"
    texts = ["a red square", "a blue square"]
    assert torch.allclose(second.texts(texts), first.texts(texts), atol=1e-3)
    logs = [json.loads((path / "training_log.json").read_text())["heldout"] for path in (run / "final", final)]
    assert logs[0] == logs[1]
    with pytest.raises(UserError, match=r"is a CLIPModel, but model\.layout is siglip"):
        train({**values, "run_dir": str(tmp_path / "x"), "model": {"init_from": str(run), "layout": "siglip"}})


@pytest.mark.slow
def test_averages_and_measurements_survive_a_stop_and_a_teacher_teaches(trained, tmp_path):
    pairs, run = trained
    folder = tmp_path / "classes"
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        save_image(folder / name / "one.png", colour, (16, 16))
    (tmp_path / "names.txt").write_text("\n".join(f"{name} square" for name in sorted(COLOURS)))
    watched = {"every_steps": 3, "folder": str(folder), "class_file": str(tmp_path / "names.txt"), "pairs": str(pairs)}
    changes = {"average_decay": 0.5, "eval": watched, "loss__teacher": str(run), "train__epochs": 2}
    changes |= {"model__vision_width": 128, "train__keep_best_by": "zero_shot_accuracy@1", "train__best_is": "highest"}
    whole = train(values_of(pairs, tmp_path / "whole", **changes))
    parts = validate_settings(ContrastiveSettings, values_of(pairs, tmp_path / "parts", **changes), "test")
    assert train_clip(parts, stop_after=2) is None
    again = train_clip(parts)
    assert series(tmp_path / "parts") == series(tmp_path / "whole")
    averaged, same = (load_dual(path)[0].state_dict() for path in (whole, again))
    assert all(torch.equal(averaged[name], same[name]) for name in averaged)
    last = load_dual(tmp_path / "whole" / "checkpoints" / "step_00000004" / "model")[0].state_dict()
    name = "text_model.encoder.layers.0.mlp.fc1.weight"
    assert 0 < (averaged[name] - last[name]).abs().max() < 0.05
    for step in metrics(tmp_path / "whole"):
        names = {"zero_shot_accuracy@1", "zero_shot_accuracy@5", "text_to_image_recall@1", "image_to_text_recall@10"}
        assert (names <= step.keys()) == (step["step"] in (3, 4))
    alone = train(values_of(pairs, tmp_path / "alone", **{**changes, "loss__teacher": None}))
    assert series(tmp_path / "alone")[1] != series(tmp_path / "whole")[1] and alone.is_dir()
    (tmp_path / "names.txt").write_text("red square")
    with pytest.raises(UserError, match="has no name for the class 'black'"):
        train(values_of(pairs, tmp_path / "bad", **changes))


def test_chunks_have_a_teachers_loss_of_the_whole_batch(trained, tmp_path):
    pairs, run = trained
    batcher = batcher_of(pairs, tmp_path, model__image_size_px=24)
    teacher = Teacher(str(run), batcher.preparer)
    batcher.teacher = teacher.inputs
    assert batcher.batch(0).teacher_pixels.shape[2:] == (16, 16) and batcher.batch(0).pixel_values.shape[2:] == (24, 24)
    model, totals = model_of(pairs, tmp_path, batcher, model__image_size_px=24), []
    for chunk in (None, 3):
        task = ContrastiveTask(batcher, "infonce", chunk, teacher, 0.5)
        totals.append(sum(task.loss(model, part).loss_sum.item() for part in task.window(0, 0, 1).micro_batches))
    plain = ContrastiveTask(batcher)
    (whole,) = plain.window(0, 0, 1).micro_batches
    assert totals[1] == pytest.approx(totals[0], rel=1e-5) and totals[0] > plain.loss(model, whole).loss_sum.item()


def test_layers_are_compiled_where_that_is_asked_for(pairs, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: asked.append(type(self).__name__))
    model_of(pairs, tmp_path, batcher_of(pairs, tmp_path), model__compile_layers=True, model__text_layers=2)
    assert asked == ["CLIPEncoderLayer"] * 3


def test_karpathys_test_part_is_read_with_all_its_captions(tmp_path):
    images = [
        {
            "filepath": "val2014",
            "filename": "a.jpg",
            "split": "test",
            "sentences": [{"raw": "A cat."}, {"raw": "It sits."}],
        },
        {"filename": "b.jpg", "split": "train", "sentences": [{"raw": "A dog."}]},
        {"filename": "c.jpg", "split": "test", "sentences": [{"tokens": ["a"]}]},
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    faults = []
    read = list(READERS.get("karpathy_test")(tmp_path / "dataset_coco.json", faults.append))
    assert [(sample.images, sample.messages[-1].text) for sample in read] == [
        (("val2014/a.jpg",), "A cat."), (("val2014/a.jpg",), "It sits."),
    ]  # fmt: skip
    assert len(faults) == 1 and "sentences" in str(faults[0])
