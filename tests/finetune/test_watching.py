"""What a run tells of itself: costs of a step, held-out loss, sample answers, trackers, curves."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from mllm.checkpoint.ours import load
from mllm.checkpoint.start import build
from mllm.data.collate import collate
from mllm.data.dataset import Mixture
from mllm.data.example import render_example
from mllm.data.packing import pack
from mllm.data.recipe import load_recipe
from mllm.data.settings import DataSettings
from mllm.errors import UserError
from mllm.finetune.flops import unit_flops
from mllm.finetune.run import finetune
from mllm.finetune.settings import FinetuneSettings
from mllm.finetune.task import InstructionTask
from mllm.inference.generate import Request, generate_batch
from mllm.model.trainable import apply_policy
from mllm.running_mean import SMOOTHED_STEPS
from mllm.settings import validate_settings
from mllm.training.callbacks import Callback, LogLine
from mllm.training.gpus import device_peak_flops
from mllm.training.settings import LoopSettings
from tests.helpers.runs import config, metrics, run_here, series
from tests.helpers.tiny import tiny_settings

pytestmark = pytest.mark.slow


def go(values, stop_after=None):
    return finetune(validate_settings(FinetuneSettings, values, "test"), stop_after)


def fail(error):
    raise error


def test_every_step_says_what_it_cost_and_a_resume_goes_on_counting(tiny_parts, recipe, tmp_path):
    values = config(tiny_parts, recipe, tmp_path / "run")
    go(values, stop_after=2)
    go(values)
    steps = metrics(tmp_path / "run")
    assert [step["tokens_seen"] for step in steps][-1] == sum(step["tokens"] for step in steps)
    for step in steps:
        assert step["mfu"] > 0 and step["peak_memory_gib"] > 0.01 and 0 <= step["data_wait_share"] <= 1
        assert step["tokens_per_second"] == pytest.approx(step["tokens"] / step["step_s"])


def test_the_log_says_a_loss_averaged_over_steps_and_a_resume_goes_on_averaging(caplog):
    caplog.set_level("INFO")
    costs = {
        "tokens_per_second": 1.0,
        "data_wait_share": 0.0,
        "peak_memory_gib": 1.0,
        "grad_norm": 1.0,
        "lr_scale": 1.0,
    }

    def said(line, losses):
        caplog.clear()
        for step, loss in enumerate(losses, start=1):
            line.on_step(step, {"loss": loss, **costs})
        return [float(message.split("loss ")[1].split()[0]) for message in caplog.messages]

    losses = [4.0, 0.0, 2.0, 7.0, 1.0, 3.0]
    whole = said(LogLine(1), losses)
    kept = 1 - 1 / SMOOTHED_STEPS
    weights = [kept**age for age in range(len(losses))]
    last = sum(w * loss for w, loss in zip(weights, reversed(losses), strict=True)) / sum(weights)
    assert whole[0] == 4.0 and whole[-1] == pytest.approx(last, abs=1e-4)
    first, second = LogLine(1), LogLine(1)
    begun = said(first, losses[:3])
    second.restore(first.state())
    assert begun + said(second, losses[3:]) == whole


def test_packing_changes_no_useful_work_and_a_shared_prefix_saves_some(tiny_parts, recipe):
    model, processor = build(tiny_settings(tiny_parts))
    apply_policy(model, validate_settings(FinetuneSettings, config(tiny_parts, recipe, "x"), "test").trainable)
    mixture = Mixture(load_recipe(str(recipe)), 0, True)
    flops = {}
    for packing in ("none", "samples", "shared_prefix"):
        data = DataSettings(recipe=str(recipe), max_length_tokens=256, packing=packing)
        task = InstructionTask(mixture, processor, data, LoopSettings(global_batch_size=12), unit_flops(model))
        flops[packing] = sum(micro_batch.flops for micro_batch in task.window(0, 0, 1).micro_batches)
    assert flops["none"] == pytest.approx(flops["samples"]) and flops["shared_prefix"] < 0.9 * flops["none"]


def test_the_held_out_loss_is_that_of_the_saved_model_and_leaves_training_alone(tiny_parts, recipe, tmp_path):
    lora = {"language_model": "lora", "lora": {"rank": 4, "alpha": 8, "dropout": 0.3}}
    watched = {"eval": {"recipe": str(recipe), "every_steps": 4}, "trainable": lora}
    run_here(config(tiny_parts, recipe, tmp_path / "a", data__packing="shared_prefix") | {"trainable": lora})
    run_here(config(tiny_parts, recipe, tmp_path / "b", data__packing="shared_prefix") | watched)
    assert series(tmp_path / "a") == series(tmp_path / "b")
    found = {step["step"]: step["heldout_loss"] for step in metrics(tmp_path / "b") if "heldout_loss" in step}
    assert list(found) == [4, 6]
    model, processor = load(tmp_path / "b" / "final")
    examples = [render_example(s, processor, 128) for s in Mixture(load_recipe(str(recipe)), 0, False).samples]
    batch = collate(pack(examples, "none", 128), processor, fail)
    with torch.no_grad():
        expected = float(model.eval()(batch)) / batch.target_count
    assert found[6] == pytest.approx(expected, rel=1e-5)


def test_sample_answers_are_those_of_the_saved_model_and_are_not_written_twice(tiny_parts, recipe, tmp_path):
    questions = recipe.parent / "samples.jsonl"
    asked = {"file": str(questions), "image_root": str(recipe.parent), "every_steps": 2, "count": 4}
    values = config(tiny_parts, recipe, tmp_path / "run", train__save_every_steps=3) | {"samples": asked}

    class BrokenAt4(Callback):
        def on_step(self, step, metrics):
            if step == 4:
                raise KeyError(step)

    with pytest.raises(KeyError):  # after the answers of step 4, before its checkpoint
        finetune(validate_settings(FinetuneSettings, values, "test"), callbacks=[BrokenAt4()])
    go(values)
    records = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [(r["step"], r["id"]) for r in records] == [(s, f"s{n}") for s in (2, 4, 6) for n in range(4)]
    assert records[0]["expected"] == "red" and records[0]["question"].startswith("what colour is this")
    lines = [json.loads(line) for line in questions.read_text().splitlines()[:4]]
    model, processor = load(tmp_path / "run" / "final")
    samples = Mixture(load_recipe(str(recipe)), 0, False).samples[: len(lines)]
    requests = [Request(tuple(sample.messages[:-1]), tuple(sample.images)) for sample in samples]
    assert [r["answer"] for r in records[-4:]] == generate_batch(model, processor, requests, 64)
    go_on = [step for step in metrics(tmp_path / "run") if "samples" in step]
    assert not go_on  # texts are for the trackers


@pytest.mark.parametrize(
    "line, complaint",
    [
        (None, "does not exist"),
        ("", "holds no sample"),
        ('{"id": "a"}', "line 1: messages: Field required"),
    ],
)
def test_a_file_of_questions_that_cannot_be_asked_is_named(tiny_parts, recipe, tmp_path, line, complaint):
    path = tmp_path / "questions.jsonl"
    if line is not None:
        path.write_text(line)
    values = config(tiny_parts, recipe, tmp_path / "run")
    with pytest.raises(UserError, match=complaint):
        go(values | {"samples": {"file": str(path), "every_steps": 1}})


def test_a_tracker_that_is_missing_is_said_in_one_line(tiny_parts, recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="wandb, which is not installed: pip install wandb"):
        run_here(config(tiny_parts, recipe, tmp_path / "run", train__trackers=["tensorboard", "wandb"]))


def test_a_resumed_run_goes_on_under_its_id_in_weights_and_biases(tiny_parts, recipe, tmp_path, monkeypatch):
    started, logged = [], []

    def init(**arguments):
        started.append(arguments)
        return SimpleNamespace(
            id=arguments["id"] or "abc", log=lambda shown, step: logged.append((step, shown)), finish=lambda: None
        )

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    values = config(tiny_parts, recipe, tmp_path / "run", train__trackers=["wandb"])
    go(values, stop_after=2)
    go(values)
    assert [arguments["id"] for arguments in started] == [None, "abc"]
    assert [step for step, _ in logged] == [1, 2, 3, 4, 5, 6] and logged[0][1]["loss"] > 0
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_a_run_ends_with_a_picture_of_its_curves(tiny_parts, recipe, tmp_path):
    values = config(tiny_parts, recipe, tmp_path / "run", train__epochs=4)
    run_here(values | {"eval": {"recipe": str(recipe), "every_steps": 5}})
    with Image.open(tmp_path / "run" / "curves.png") as picture:
        assert picture.format == "PNG" and picture.width >= 800


def test_a_listed_gpu_is_known_by_its_drivers_name_and_others_are_measured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    gpu = torch.device("cuda")
    assert device_peak_flops(gpu, "bfloat16") == 989e12 and device_peak_flops(gpu, "float32") == 67e12
    assert 1e8 < device_peak_flops(torch.device("cpu"), "float32") < 1e14
