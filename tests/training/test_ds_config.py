"""A DeepSpeed JSON is filled from the settings, and refused where it says something else."""

import json
from pathlib import Path

import pytest

from mllm.errors import UserError
from mllm.training.ds_config import fill_ds_config, offloads, zero_stage
from mllm.training.settings import LoopSettings, OptimizerSettings

ROOT = Path(__file__).parents[2]
OPTIM = OptimizerSettings(lr=1e-3, max_grad_norm=0.5)
LOOP = LoopSettings(global_batch_size=64, micro_batch_size=2, dtype="bfloat16")


@pytest.mark.parametrize("path", sorted((ROOT / "ds_configs").glob("*.json")), ids=lambda path: path.stem)
def test_shipped_files_are_filled_without_an_auto_left(path):
    filled = fill_ds_config(json.loads(path.read_text()), OPTIM, LOOP)
    assert '"auto"' not in json.dumps(filled)
    assert filled["train_micro_batch_size_per_gpu"] == 2 and filled["gradient_clipping"] == 0.5
    assert filled["bf16"] == {"enabled": True}
    # Stage 0 has no optimizer for bfloat16 that steps as AdamW does.
    assert f"zero{zero_stage(filled)}" in path.stem or (path.stem, zero_stage(filled)) == ("zero0", 1)
    in_float32 = fill_ds_config(json.loads(path.read_text()), OPTIM, LOOP.model_copy(update={"dtype": "autocast"}))
    assert f"zero{zero_stage(in_float32)}" in path.stem
    assert offloads(filled, "offload_optimizer") == path.stem.endswith("_offload")


@pytest.mark.parametrize("gpu", [False, True])
def test_on_a_gpu_communication_runs_beside_computation_in_larger_buckets(gpu):
    for path in (ROOT / "ds_configs").glob("zero[23]*.json"):
        zero = fill_ds_config(json.loads(path.read_text()), OPTIM, LOOP, gpu)["zero_optimization"]
        assert zero["overlap_comm"] is gpu
        assert zero.get("reduce_bucket_size") in (None, 200_000_000 if gpu else 50_000_000)
    given = {"zero_optimization": {"stage": 2, "overlap_comm": not gpu}}
    assert fill_ds_config(given, OPTIM, LOOP, gpu)["zero_optimization"]["overlap_comm"] is not gpu


def test_a_file_written_for_other_trainers_is_filled():
    auto = {"enabled": "auto"}
    given = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "fp16": {"enabled": "auto", "loss_scale": 0},
        "bf16": auto,
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": [0.9, 0.999], "weight_decay": 0.0}},
        "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto", "stage3_param_persistence_threshold": "auto"},
    }
    filled = fill_ds_config(given, OPTIM, LOOP)
    assert '"auto"' not in json.dumps(filled)
    assert not {"fp16", "optimizer", "train_batch_size"} & filled.keys()
    assert filled["zero_optimization"]["reduce_bucket_size"] > 0


@pytest.mark.parametrize(
    ("given", "optim", "message"),
    [
        ({"train_batch_size": 128}, {}, r"train_batch_size=128, our settings say 64"),
        ({"gradient_accumulation_steps": 4}, {}, r"gradient_accumulation_steps=4, our settings say 1"),
        ({"gradient_clipping": 1.0}, {}, r"gradient_clipping=1.0, our settings say 0.5"),
        ({"bf16": {"enabled": False}}, {}, r"bf16.enabled=False, train.dtype says bfloat16"),
        ({"fp16": {"enabled": True}}, {}, r"fp16.enabled=True, train.dtype says bfloat16"),
        ({"torch_autocast": {"enabled": True}}, {}, r"torch_autocast.enabled=True, train.dtype says bfloat16"),
        ({"optimizer": {"type": "Lion"}}, {}, r"optimizer.type=Lion, our settings say optim.kind=adamw"),
        ({"optimizer": {"params": {"lr": 1.0}}}, {}, r"optimizer.params.lr=1.0, our settings say 0.001"),
        (
            {"optimizer": {"params": {"adam_w_mode": True}}},
            {},
            r"adam_w_mode=True, for which our settings have no name",
        ),
        ({"scheduler": {"type": "WarmupLR"}}, {}, r"scheduler.type=WarmupLR, our settings say optim.schedule=cosine"),
        ({"zero_force_ds_cpu_optimizer": True}, {}, r"zero_force_ds_cpu_optimizer=True, our settings say False"),
        ({"zero_optimization": {"stage": 5}}, {}, r"stage=5; it can be 0, 1, 2 or 3"),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, {}, r"needs stage 3"),
        ({"zero_optimization": {"stage": 3, "sub_group_size": "auto"}}, {}, r"zero_optimization.sub_group_size=.auto"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
            {"kind": "paged_adamw"},
            r"offload_optimizer, our settings say optim.kind=paged_adamw",
        ),
    ],
)
def test_contradictions_are_refused_with_both_values(given, optim, message):
    with pytest.raises(UserError, match=message):
        fill_ds_config(given, OPTIM.model_copy(update=optim), LOOP)


def test_gradients_of_bfloat16_weights_add_up_in_float32_if_asked():
    wide = LOOP.model_copy(update={"gradient_dtype": "float32"})
    for stage in (2, 3):
        filled = fill_ds_config({"zero_optimization": {"stage": stage}}, OPTIM, wide)
        assert filled["data_types"] == {"grad_accum_dtype": "fp32"} and filled["communication_data_type"] == "fp32"
        plain = fill_ds_config({"zero_optimization": {"stage": stage}}, OPTIM, LOOP)
        assert not {"data_types", "communication_data_type"} & plain.keys()
    with pytest.raises(UserError, match=r"at stages 2 and 3; this ds_config has stage 1"):
        fill_ds_config({"zero_optimization": {"stage": 1}}, OPTIM, wide)
    for key, section in (
        ("grad_accum_dtype", {"data_types": {"grad_accum_dtype": "fp32"}}),
        ("communication_data_type", {"communication_data_type": "fp16"}),
    ):
        with pytest.raises(UserError, match=rf"{key}=fp.*, our settings say bf16"):
            fill_ds_config(section | {"zero_optimization": {"stage": 2}}, OPTIM, LOOP)
