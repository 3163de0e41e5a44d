"""What `mllm plan` foresees is what a run then does."""

import io
import json

import pytest
from rich.console import Console

from mllm.cli import build_parser
from mllm.data.dataset import Mixture
from mllm.data.recipe import RecipeSettings, load_recipe
from mllm.errors import UserError
from mllm.finetune.plan import Machine, plan_runs
from mllm.finetune.plan.memory import LiveBytes, StepMemory, Weights, zero_memory
from mllm.finetune.plan.report import plan_report
from mllm.finetune.run import finetune, start_model
from mllm.finetune.settings import FinetuneSettings
from mllm.finetune.task import GPU_LENGTH_MULTIPLE, InstructionTask
from mllm.model.trainable import apply_policy
from mllm.settings import dump_yaml, validate_settings
from mllm.training.build_engine import start_engine
from tests.helpers.runs import config, second_stage
from tests.helpers.tiny import save_image

pytestmark = pytest.mark.slow

ALL = 10_000
TILED = {"model__image": {"tiling": "anyres"}}


def settings(values):
    return validate_settings(FinetuneSettings, values, "test")


def planned(run, **machine):
    return plan_runs([run], Machine(**machine), ALL)[0]


@pytest.mark.parametrize("layout", [{}, TILED], ids=["square", "tiled"])
@pytest.mark.parametrize("packing", ["none", "samples", "shared_prefix"])
def test_planned_steps_samples_and_tokens_are_those_of_the_run(tiny_parts, recipe, tmp_path, packing, layout):
    run = settings(config(tiny_parts, recipe, tmp_path / "run", data__packing=packing, train__epochs=1, **layout))
    plan = planned(run)
    assert plan.data.images.count == 9 and plan.data.images.tokens.maximum == (44 if layout else 16)
    assert plan.data.images.tiles.minimum == (3 if layout else 1) and plan.largest_image.tile_count == (
        5 if layout else 1
    )
    finetune(run)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert plan.data.steps == len(lines) == 3
    assert plan.data.samples == sum(len(line["sample_ids"]) for line in lines) == 12
    assert plan.rows.tokens * plan.data.steps_read == pytest.approx(sum(line["tokens"] for line in lines))


def live_bytes_of(run, kernel="segments"):
    """The most bytes of tensors at once in a run of one process, from its weights to its last optimizer step.

    Rows are as long as they are where the run takes `kernel`: on a GPU, unless it is segments.
    """
    multiple = 1 if kernel == "segments" else GPU_LENGTH_MULTIPLE
    model, processor = start_model(run)
    model.attention_kernel = kernel
    apply_policy(model, run.trainable)
    mixture = Mixture(load_recipe(run.data.recipe), 0, False)
    task = InstructionTask(mixture, processor, run.data, run.train, length_multiple=multiple)
    with LiveBytes() as live:
        for tensor in [*model.parameters(), *model.buffers()]:
            live.count(tensor)
        engine = start_engine(run.engine, run.optim, run.train)(model.train())
        for step in range(task.steps_per_epoch):
            for micro_batch in task.window(step, 0, 1).micro_batches:
                with engine.autocast():
                    loss = task.loss(engine.module, micro_batch).loss_sum
                engine.backward(loss, 1.0, last=True)
                del loss
            engine.step(1.0)
    return live.peak


@pytest.mark.parametrize(
    "changes",
    [
        {"data__packing": "samples"},
        {"data__packing": "samples", "train__dtype": "autocast"},
        {"data__packing": "shared_prefix"},
        {"data__packing": "none", "train__micro_batch_size": 4},
        {"trainable__language_model": "lora", "trainable__lora": {"rank": 4, "alpha": 8}},
        {"data__packing": "samples", **TILED},
        {"train__tiles_together": 2, "trainable__vision_encoder": "frozen", "train__micro_batch_size": 4, **TILED},
    ],
)
def test_planned_memory_is_what_the_steps_allocate(tiny_parts, recipe, tmp_path, changes):
    run = settings(config(tiny_parts, recipe, tmp_path / "run", **changes))
    assert planned(run).own_memory.total == pytest.approx(live_bytes_of(run), rel=0.1)


@pytest.mark.parametrize(
    ("changes", "kernel"),
    [
        ({"data__packing": "shared_prefix", "train__dtype": "autocast"}, "varlen"),
        ({"data__packing": "samples", "train__dtype": "float32"}, "mask"),
        ({"data__packing": "samples", "train__dtype": "autocast", "train__attention": "sdpa"}, "mask"),
    ],
)
def test_memory_on_a_gpu_is_planned_with_the_kernel_that_the_run_takes(tiny_parts, recipe, tmp_path, changes, kernel):
    run = settings(config(tiny_parts, recipe, tmp_path / "run", **changes))
    assert planned(run, gpu="h100").own_memory.total == pytest.approx(live_bytes_of(run, kernel), rel=0.1)


@pytest.mark.parametrize("learns", ["full", "lora", "frozen"])
def test_planned_parameters_are_those_of_the_model(tiny_parts, recipe, tmp_path, learns):
    run = settings(config(tiny_parts, recipe, tmp_path / "run", trainable__language_model=learns))
    model, _ = start_model(run)
    assert planned(run).parts == tuple(apply_policy(model, run.trainable))


@pytest.mark.parametrize("layout", [{}, TILED], ids=["square", "tiled"])
def test_a_run_that_begins_with_the_model_of_an_earlier_one_is_planned_before_either(
    tiny_parts, recipe, tmp_path, layout
):
    first = settings(config(tiny_parts, recipe, tmp_path / "one", **layout))
    second = second_stage(tiny_parts, recipe, tmp_path)
    before = plan_runs([first, second], Machine(), ALL)
    finetune(first)
    assert plan_runs([first, second], Machine(), ALL) == before
    assert [plan.data.steps for plan in before] == [6, 6]


def test_a_subsample_is_of_whole_steps_and_the_same_again(tiny_parts, recipe, tmp_path):
    run = settings(config(tiny_parts, recipe, tmp_path / "run", train__epochs=1))
    (part,), (again,), whole = (plan_runs([run], Machine(), 5), plan_runs([run], Machine(), 5), planned(run))
    assert part == again
    assert (part.data.samples_read, part.data.steps_read) == (4, 1) != (whole.data.samples_read, 3)
    assert part.data.samples == whole.data.samples == 12
    assert part.flops == pytest.approx(whole.flops, rel=0.2)


def test_samples_that_training_would_skip_are_counted_by_kind(tiny_parts, recipe, tmp_path):
    plan = planned(settings(config(tiny_parts, recipe, tmp_path / "run", data__max_length_tokens=40)))
    assert plan.data.skipped["too_long"] + plan.data.samples_read == 12


def test_memory_is_shared_as_the_zero_stages_say():
    """Rajbhandari et al. 2020, figure 1, but for the gradients' bucket: 7.5B parameters in bfloat16 on 64 GPUs."""
    weights, step = Weights(7_500_000_000, 7_500_000_000), StepMemory(0, 0, 0)

    def gigabytes(stage):
        memory = zero_memory(stage, 64, weights, step, True, "bfloat16")
        return (memory.weights + memory.gradients + memory.optimizer) / 1e9

    assert [gigabytes(stage) for stage in (1, 2, 3)] == pytest.approx([31.4, 16.6, 1.9], abs=0.1)


def test_stage_1_takes_the_place_of_stage_0_in_bfloat16_and_gradients_in_float32_count_twice(
    tiny_parts, recipe, tmp_path
):
    weights, step = Weights(1000, 500), StepMemory(0, 0, 0)
    first, second = (zero_memory(stage, 2, weights, step, True, "bfloat16") for stage in (0, 1))
    assert first.optimizer == second.optimizer == 12 * 500 / 2 and first.total == second.total
    values = config(tiny_parts, recipe, tmp_path / "run", train__dtype="bfloat16")
    values["engine"] = {"kind": "deepspeed", "ds_config": "ds_configs/zero0.json"}
    assert planned(settings(values), ranks=2).stage == 1
    values["engine"]["ds_config"] = "ds_configs/zero2.json"
    narrow = planned(settings(values), ranks=2).own_memory
    values["train"]["gradient_dtype"] = "float32"
    assert planned(settings(values), ranks=2).own_memory.gradients == 2 * narrow.gradients


def test_main_memory_is_planned_for_the_rank_that_reads_and_gathers(tiny_parts, recipe, tmp_path):
    values = config(tiny_parts, recipe, tmp_path / "run", train__dtype="bfloat16")
    plan = planned(settings(values), ranks=2)
    largest = 329 * 32  # the embedding, with a row for the image token
    for host in plan.host:
        assert host.start_rank_0 == 8 * largest and host.start_others == 0
        assert host.saving_rank_0 == host.peak_rank_0 == 2 * sum(part.total for part in plan.parts)
    values["model"]["projector"] = {"calibration_images": 2}
    calibrated = planned(settings(values), ranks=2)
    assert calibrated.host[0].start_rank_0 > plan.host[0].start_rank_0 + 4 * plan.parts[0].total


def test_what_is_offloaded_is_on_the_host():
    step, weights = StepMemory(1000, 1000, 0), Weights(100, 50)
    config = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    ours = zero_memory(2, 2, weights, step, True, "bfloat16", config)
    plain = zero_memory(2, 2, weights, step, True, "bfloat16", {"zero_optimization": {"stage": 2}})
    assert (ours.optimizer, ours.host) == (0, plain.optimizer) and plain.optimizer == 12 * 50 / 2
    assert zero_memory(1, 2, weights, step, True, "bfloat16", config).host == 0


def test_qlora_and_8_bit_moments_shrink_what_they_are_to(tiny_parts, recipe, tmp_path):
    values = config(tiny_parts, recipe, tmp_path / "run", trainable__language_model="lora")
    values["trainable"] |= {"vision_encoder": "frozen", "lora": {"rank": 4, "alpha": 8}}
    plain = planned(settings(values)).own_memory
    values["trainable"]["language_model"] = "qlora"
    values["optim"]["kind"] = "adamw_8bit"
    small = planned(settings(values)).own_memory
    linear = 2 * (32 * 32 * 2 + 32 * 16 * 2 + 32 * 64 * 3)  # two layers: q and o, k and v, the three of the MLP
    assert plain.weights - small.weights == pytest.approx((4 - 0.516) * linear, rel=1e-3)
    assert small.optimizer == pytest.approx(plain.optimizer / 4, rel=0.02)
    assert small.gradients == plain.gradients


def test_hours_follow_from_flops_gpus_and_mfu(tiny_parts, recipe, tmp_path):
    run = settings(config(tiny_parts, recipe, tmp_path / "run", train__dtype="bfloat16"))
    plan = planned(run, gpu="h100", ranks=4, mfu=0.5)
    assert plan.hours == pytest.approx(plan.flops / (989e12 * 4 * 0.5) / 3600)
    assert plan.stage == 2 and plan.own_memory.ranks == 4


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        ({"gpu": "h1000"}, "choose one of: a100"),
        ({"ranks": 0}, "at least 1"),
        ({"mfu": 1.5}, "at most 1"),
        ({"ranks": 2}, "engine.world_size is 3, --gpus is 2"),
    ],
)
def test_a_machine_that_makes_no_sense_is_refused(tiny_parts, recipe, tmp_path, machine, message):
    run = settings(config(tiny_parts, recipe, tmp_path / "run") | {"engine": {"world_size": 3}})
    with pytest.raises(UserError, match=message):
        planned(run, **machine)


def test_the_command_prints_tables_or_json(tiny_parts, recipe, tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(settings(config(tiny_parts, recipe, tmp_path / "run"))))
    for extra in ([], ["--json"]):
        options = build_parser().parse_args(["plan", str(path), "--gpu", "a100", *extra])
        options.run(options)
        out = capsys.readouterr().out
        if extra:
            assert json.loads(out)[0]["data"]["steps"] == 6
        else:
            assert "6 steps over 24 samples" in out and "ZeRO-3" in out
            assert "images: 9, 16 image tokens in 1 tile(s) each" in out


def test_the_tiles_and_image_tokens_of_unlike_images_are_told(tiny_parts, recipe, tmp_path):
    save_image(recipe.parent / "wide.png", size=(60, 16))
    lines = (recipe.parent / "samples.jsonl").read_text().replace("blue.png", "wide.png")
    (tmp_path / "samples.jsonl").write_text(lines)
    source = {"path": str(tmp_path / "samples.jsonl"), "image_root": str(recipe.parent)}
    (tmp_path / "r.yaml").write_text(dump_yaml(RecipeSettings(name="r", sources=(source,))))
    run = settings(config(tiny_parts, tmp_path / "r.yaml", tmp_path / "run", **TILED))
    console = Console(width=200, file=io.StringIO())
    console.print(plan_report(planned(run)))
    out = console.file.getvalue()
    assert "tiles         min 3  median 3  mean 3.3  p90 4  max 4" in out
    assert "the largest image would be 88 image tokens in 5 tile(s)" in out
