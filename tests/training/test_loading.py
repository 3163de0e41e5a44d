"""How a run's weights get to its ranks: one reads, and each has what one process would have."""

import errno
import importlib
import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from mllm.checkpoint import ours as checkpoint
from tests.helpers.launches import in_ranks
from tests.helpers.ranks import starts
from tests.helpers.runs import ROOT, config, run_here

LORA = {"rank": 4, "alpha": 8, "dropout": 0.0}
POLICIES = {
    "full": {"language_model": "full", "vision_encoder": "full"},
    "lora": {"language_model": "lora", "vision_encoder": "lora"},
    "dora": {"language_model": "dora"},
    "qlora": {"language_model": "qlora"},
}
TIME_LIMIT_S = 300


def ds_config(tmp_path, stage):
    """The shipped file; at stage 3 every tensor is really partitioned, however small."""
    value = json.loads((ROOT / "ds_configs" / f"zero{stage}.json").read_text())
    if stage == 3:
        value["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    path = tmp_path / f"ds{stage}.json"
    path.write_text(json.dumps(value))
    return str(path)


def case(name, values, tmp_path, stage):
    engine = {"kind": "deepspeed", "ds_config": ds_config(tmp_path, stage)}
    return {"name": name, "settings": values | {"engine": engine}}


def start_in_ranks(cases, tmp_path, ranks=2):
    """What each rank found of each case: rank → name → findings."""
    in_ranks(tmp_path / "starts", ranks, starts, json.dumps(cases), str(tmp_path / "found"), time_limit_s=TIME_LIMIT_S)
    found = []
    for rank in range(ranks):
        lines = [json.loads(line) for line in (tmp_path / f"found.{rank}").read_text().splitlines()]
        found.append({line.pop("name"): line for line in lines})
    return found


def torn(directory, target):
    target.mkdir()
    for path in directory.iterdir():
        content = path.read_bytes()
        (target / path.name).write_bytes(content[:-100] if path.suffix == ".safetensors" else content)
    return target


def without(directory, target, wanted):
    target.mkdir()
    for path in directory.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    weights = load_file(target / "model.safetensors")
    save_file({n: t for n, t in weights.items() if wanted not in n}, target / "model.safetensors", {"format": "pt"})
    return target


@pytest.mark.slow
def test_every_rank_starts_from_what_one_process_starts_from_and_one_alone_reads(tiny_parts, recipe, tmp_path):
    """Parts and a saved model, every policy, stages 0 to 3, float32 and bfloat16; what is broken is a line on every rank."""

    def values(policy="full", model=None, **changes):
        run = config(tiny_parts, recipe, tmp_path / "run", **changes)
        run["trainable"] = POLICIES[policy] | {"lora": LORA, "vision_encoder_lora": LORA}
        run["model"]["projector"] = {"calibration_images": 3}
        run["optim"] |= {"lr_token_embeddings": 1e-5} if policy == "full" else {}
        return run if model is None else run | {"model": model}

    saved = config(tiny_parts, recipe, tmp_path / "saved", train__max_steps=1, train__global_batch_size=2)
    saved["trainable"] = POLICIES["qlora"] | {"lora": LORA}
    final = run_here(saved)
    ours = {"init_from": str(final), "prompt_format": "vicuna_v1"}
    broken = {
        "torn": torn(final, tmp_path / "torn"),
        "missing": without(final, tmp_path / "missing", "layers.0.input_layernorm"),
        "torn_part": torn(tiny_parts / "lm", tmp_path / "torn_part"),
    }
    cases = [
        *(case(f"{policy}_3", values(policy), tmp_path, 3) for policy in POLICIES),
        *(case(f"full_{stage}", values(), tmp_path, stage) for stage in (0, 1, 2)),
        case("qlora_2", values("qlora"), tmp_path, 2),
        case("qlora_bfloat16_3", values("qlora", train__dtype="bfloat16"), tmp_path, 3),
        case("full_bfloat16_2", values(train__dtype="bfloat16"), tmp_path, 2),
        case("saved_qlora_3", values("qlora", ours), tmp_path, 3),
        case("saved_and_merged_3", values("lora", ours), tmp_path, 3),
        case("saved_and_merged_2", values("full", ours), tmp_path, 2),
        case("torn_3", values("qlora", ours | {"init_from": str(broken["torn"])}), tmp_path, 3),
        case("missing_2", values("qlora", ours | {"init_from": str(broken["missing"])}), tmp_path, 2),
        case(
            "torn_part_2",
            values("full", values()["model"] | {"language_model": {"path": str(broken["torn_part"])}}),
            tmp_path,
            2,
        ),
    ]
    first, second = start_in_ranks(cases, tmp_path)
    for name, found in first.items():
        if name.startswith(("torn", "missing")):
            assert found == second[name] and found["error"].count("\n") == 0
            assert broken[name.rpartition("_")[0]].name in found["error"], found
            continue
        assert not found["differ"] and not found["more"] and found["counts"], (name, found)
        assert found["buffers"] == ["torch.float32"], name
        if name.startswith("full"):
            assert 1e-5 in found["rates"]


@pytest.mark.slow
def test_no_rank_but_one_holds_weights_of_its_own_while_a_run_starts(monkeypatch, capsys):
    """The model is small: the bounds leave room for the largest tensor and the interpreter's own growth."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    words = ["--layers", "6", "--ranks", "2", "--json", "--dtype", "float32"]
    monkeypatch.setattr(sys, "argv", ["host_memory.py", *words])
    importlib.import_module("host_memory").main()
    whole, parted = (json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{"))
    assert whole["all"][0] < 1.2 and whole["all"][1] < 0.3
    assert max(parted["beside"]) < 0.3 and max(parted["all"]) < 0.8


def test_a_file_that_ends_while_it_is_read_is_a_line(tiny_parts, recipe, tmp_path, monkeypatch):
    run = config(tiny_parts, recipe, tmp_path / "run", train__max_steps=1)
    final = run_here(run)
    beginning = checkpoint.begin(final)
    opened = beginning.open_contents

    def cut_short():
        contents = opened()
        path = final / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-4000])
        return contents

    with pytest.raises(
        checkpoint.UserError, match=r"model.safetensors is not a whole safetensors file \(it ends within"
    ):
        type(beginning)(beginning.model, beginning.processor, cut_short).filled(torch.float32)


def test_too_little_memory_is_a_line(tiny_parts, recipe, tmp_path, monkeypatch):
    beginning = checkpoint.begin(run_here(config(tiny_parts, recipe, tmp_path / "run", train__max_steps=1)))

    def refuse(*_, **__):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("mllm.checkpoint.origin.mmap.mmap", refuse)
    with pytest.raises(checkpoint.UserError, match=r"no memory is left for .*; `mllm plan` says what a run takes"):
        beginning.filled(torch.float32)
