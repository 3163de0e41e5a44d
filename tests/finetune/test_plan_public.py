"""What `mllm plan` and `mllm estimate` say of runs of a model of transformers is what the runs do."""

import json

import pytest
import yaml
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from mllm.checkpoint import public
from mllm.data.dataset import Mixture
from mllm.data.recipe import load_recipe
from mllm.errors import UserError
from mllm.finetune.estimate import estimate_runs
from mllm.finetune.plan import Machine, plan_runs
from mllm.finetune.plan.memory import LiveBytes
from mllm.finetune.run import start_model
from mllm.finetune.settings import FinetuneSettings
from mllm.finetune.task import InstructionTask
from mllm.model.public import wrap
from mllm.model.trainable import apply_policy
from mllm.settings import validate_settings
from tests.helpers.public_models import tiny
from tests.helpers.tiny import save_image

pytestmark = pytest.mark.slow

WHOLE = {"language_model": "full", "projector": "full", "vision_encoder": "full"}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A step of three samples, of which one shows two images and one shows none."""
    root = tmp_path_factory.mktemp("data")
    for name, size in {"one.png": (70, 24), "two.png": (18, 40)}.items():
        save_image(root / name, (200, 30, 30), size)
    with open(root / "samples.jsonl", "w") as file:
        for n, images in enumerate([["one.png"], ["two.png", "one.png"], []]):
            content = [*({"type": "image"} for _ in images), {"type": "text", "text": "what is this"}]
            messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "a cat " * 9}]
            file.write(json.dumps({"id": f"s{n}", "messages": messages, "images": images}) + "\n")
    source = {"path": str(root / "samples.jsonl"), "image_root": str(root)}
    (root / "recipe.yaml").write_text(yaml.safe_dump({"name": "few", "sources": [source]}))
    return root / "recipe.yaml"


def run_of(root, recipe, name, **train):
    public.write(root / "model", *(made := wrap(*tiny(name))), made[0].state_dict())
    values = {
        "run_dir": str(root / "run"),
        "model": {"init_from": str(root / "model")},
        "trainable": WHOLE,
        "data": {"recipe": str(recipe), "max_length_tokens": 400, "packing": "samples"},
        "optim": {"lr": 1e-3},
        "train": {"global_batch_size": 3, "dtype": "float32", "max_steps": 1, **train},
    }
    return validate_settings(FinetuneSettings, values, "test")


def measured(run):
    """The most bytes at once of forward and backward beside weights and gradients, and the tokens of all samples."""
    model, processor = start_model(run)
    apply_policy(model.train(), run.trainable)
    if run.train.gradient_checkpointing:
        model.checkpoint_activations()
    task = InstructionTask(Mixture(load_recipe(run.data.recipe), 0, False), processor, run.data, run.train)
    most = tokens = 0
    for micro_batch in task.window(0, 0, 1).micro_batches:
        tokens += micro_batch.token_count
        with LiveBytes() as live:
            for tensor in [*model.parameters(), *model.buffers()]:
                live.count(tensor)
            held = live.now
            task.loss(model, micro_batch).loss_sum.backward()
        gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
        most = max(most, live.peak - held - gradients)
        model.zero_grad()
    return most, tokens


@pytest.mark.parametrize("name", ["several_axes", "spans_and_windows"])
def test_planned_memory_parameters_and_tokens_are_those_of_the_steps(recipe, tmp_path, name):
    run = run_of(tmp_path, recipe, name, gradient_checkpointing=name == "several_axes")
    plan = plan_runs([run], Machine(), 100)[0]
    most, tokens = measured(run)
    assert plan.step_memory.first == pytest.approx(most, rel=0.1)
    assert plan.rows.tokens * plan.data.steps_read == tokens
    assert plan.flops > 0 and plan.largest_image.token_count > 0
    model, _ = start_model(run)
    assert plan.parts == tuple(apply_policy(model, run.trainable))


def test_a_runs_time_is_estimated(recipe, tmp_path):
    estimate = estimate_runs([run_of(tmp_path, recipe, "several_axes")])[0]
    assert estimate.steps_left == 1 and estimate.tokens_per_second > 0


def test_layers_that_choose_by_contents_are_named_as_what_cannot_be_foreseen(recipe, tmp_path, monkeypatch):
    run = run_of(tmp_path, recipe, "rows_and_columns")
    forward = LlamaDecoderLayer.forward

    def choosing(self, hidden_states, **given):
        return forward(self, hidden_states * (1 if hidden_states.sum().item() else 2), **given)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", choosing)
    with pytest.raises(UserError, match="what its layers compute depends on contents"):
        plan_runs([run], Machine(), 100)
