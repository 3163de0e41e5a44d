"""ZeRO-3 with tensors that really are partitioned: every rank issues the same collectives and trains as one process does."""

import json

import pytest
import torch
import torch.distributed as dist
import yaml
from torch import nn
from torch.nn import functional as F

from mllm.checkpoint.ours import load
from mllm.finetune.run import finetune
from mllm.finetune.settings import FinetuneSettings
from mllm.kernels import loss as loss_module
from mllm.kernels.loss import supervised_loss_sum
from mllm.settings import validate_settings
from tests.helpers.collectives import first_difference, recorded
from tests.helpers.launches import launch_runs
from tests.helpers.runs import ROOT, config, series, skipped_ids
from tests.helpers.tiny import save_image

ANSWER_WORDS = (24, 1, 2, 1, 30, 3, 5)
TEXT_ONLY, BROKEN = 2, 4
TEN_TILES = {"tiling": "anyres", "pinpoints": [[48, 48]]}
LORA = {"rank": 4, "alpha": 8, "dropout": 0.0}
PROJECTORS = {
    "resampler": {"kind": "resampler", "tokens": 9, "calibration_images": 1},
    "c_abstractor": {"kind": "c_abstractor", "tokens": 9, "hidden_width": 16},
}
POLICIES = {
    "full": {"language_model": "full", "vision_encoder": "full"},
    "stage1": {"projector": "full"},
    "lora": {"language_model": "lora", "lora": LORA},
    "qlora": {"language_model": "qlora", "lora": LORA, "vision_encoder": "lora", "vision_encoder_lora": LORA},
    "dora": {"language_model": "dora", "lora": LORA},
}


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Steps of three samples, so that one of two ranks has a micro-batch without targets. Answers are of unlike length,
    one sample has no image, and that of another is broken."""
    root = tmp_path_factory.mktemp("uneven")
    save_image(root / "red.png", (255, 0, 0), (40, 40))
    (root / "broken.png").write_bytes((root / "red.png").read_bytes()[:45])
    with open(root / "samples.jsonl", "w") as file:
        for n, words in enumerate(ANSWER_WORDS):
            images = [] if n == TEXT_ONLY else ["broken.png" if n == BROKEN else "red.png"]
            content = [*({"type": "image"} for _ in images), {"type": "text", "text": "what is this"}]
            messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "red " * words}]
            file.write(json.dumps({"id": f"s{n}", "messages": messages, "images": images}) + "\n")
    questions = [line for n, line in enumerate((root / "samples.jsonl").read_text().splitlines()) if n in (0, 1, 2)]
    (root / "questions.jsonl").write_text("\n".join(questions))
    for name in ("samples", "questions"):
        source = {"path": str(root / f"{name}.jsonl"), "image_root": str(root)}
        (root / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, "sources": [source]}))
    return root


def partitioned(tmp_path, name):
    """`ds_configs/NAME.json` with every tensor partitioned: the shipped file leaves small ones whole on each rank."""
    ds_config = json.loads((ROOT / "ds_configs" / f"{name}.json").read_text())
    ds_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (tmp_path / f"{name}.json").write_text(json.dumps(ds_config))
    return str(tmp_path / f"{name}.json")


@pytest.mark.slow
def test_a_rank_without_targets_or_images_never_hangs_zero_3_which_trains_as_one_process_does(
    tiny_parts, uneven, tmp_path
):
    """Unlike numbers of chunks, no targets, no image, a broken one, ten tiles beside none; every policy; projectors with
    weights outside of layers; saved, resumed, generating."""

    def values(name, policy, watched=False, tiled=False, projector=None, **changes):
        own = config(tiny_parts, uneven / "samples.yaml", tmp_path / name, data__on_bad_sample="skip", **changes)
        if projector:
            own["model"]["projector"] = PROJECTORS[projector]
        if tiled:
            own["model"]["image"] = TEN_TILES
            own["data"]["max_length_tokens"] = 300
            own["train"]["tiles_together"] = 4
        own["train"] |= {"global_batch_size": 3, "epochs": 1, "trackers": []}
        own["trainable"] = POLICIES[policy]
        if watched:
            own["eval"] = {"recipe": str(uneven / "questions.yaml"), "every_steps": 2}
            questions = {"file": str(uneven / "questions.jsonl"), "image_root": str(uneven)}
            own["samples"] = questions | {"every_steps": 2, "count": 3, "max_new_tokens": 4}
        return own

    zero3, offload = partitioned(tmp_path, "zero3"), partitioned(tmp_path, "zero3_offload")
    again = {"train__gradient_checkpointing": True}
    cases = {
        "watched": ("full", zero3, {"watched": True}, 2),
        "checkpointing": ("full", zero3, again, None),
        "shipped": ("full", "ds_configs/zero3.json", {}, None),
        "offload": ("full", offload, {"train__micro_batch_size": 2}, None),
        "stage1": ("stage1", zero3, again, None),
        "lora": ("lora", zero3, again, None),
        "qlora": ("qlora", zero3, again, None),
        "dora": ("dora", zero3, again, None),
        "bfloat16": ("full", zero3, again | {"train__dtype": "bfloat16"}, None),
        "tiles": ("full", zero3, {"tiled": True}, 2),
        **{name: ("full", zero3, {"projector": name}, None) for name in PROJECTORS},
    }
    runs = [
        (values(name, policy, **changes) | {"engine": {"kind": "deepspeed", "ds_config": ds_config}}, stop_after)
        for name, (policy, ds_config, changes, stop_after) in cases.items()
    ]
    launch_runs(runs, tmp_path)
    alone = [values(f"one_{policy}", policy, watched=policy == "full") for policy in POLICIES]
    others = [values("one_tiles", "full", tiled=True)]
    others += [values(f"one_{name}", "full", projector=name) for name in PROJECTORS]
    for own in (*alone, *others):
        finetune(validate_settings(FinetuneSettings, own, "test"))
    for name, (policy, *_) in cases.items():
        here, there = tmp_path / f"one_{name if name in ('tiles', *PROJECTORS) else policy}", tmp_path / name
        tolerance, weights = (0.02, 0.02) if name == "bfloat16" else (1e-5, 1e-4)
        (ids, losses, norms), (own_ids, own_losses, own_norms) = series(here), series(there)
        assert own_ids == ids and len(ids) == 3, name
        assert own_losses == pytest.approx(losses, rel=tolerance), name
        assert own_norms == pytest.approx(norms, rel=max(tolerance, 1e-4)), name
        assert skipped_ids(there) == [f"s{BROKEN}"]
        ends = [load(path / "final")[0].state_dict() for path in (here, there)]
        assert ends[0].keys() == ends[1].keys()
        assert all(torch.allclose(t.float(), ends[1][n].float(), atol=weights) for n, t in ends[0].items()), name
    for file in ("samples.jsonl", "skipped.jsonl"):
        assert (tmp_path / "watched" / file).read_text() == (tmp_path / "one_full" / file).read_text()
    assert heldout(tmp_path / "watched") == pytest.approx(heldout(tmp_path / "one_full"), rel=1e-5)


def heldout(run_dir):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["heldout_loss"] for line in lines if "heldout_loss" in line]


@pytest.fixture
def gathering_head():
    """A head whose every call takes a collective, as that of a partitioned weight does, in a group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    torch.manual_seed(0)
    head = nn.Linear(8, 50, bias=False)
    head.register_forward_pre_hook(lambda module, inputs: dist.all_reduce(torch.zeros(4)))
    yield head
    dist.destroy_process_group()


def loss_of_a_call_per_chunk(hidden, head, targets):
    chunks = zip(hidden.split(4), targets.split(4), strict=True)
    return torch.stack([F.cross_entropy(head(h), t, reduction="sum") for h, t in chunks]).sum()


@pytest.mark.parametrize("positions", [1, 13, 0])
def test_a_head_called_unlike_often_on_two_ranks_is_told_by_its_place(gathering_head, positions, monkeypatch):
    monkeypatch.setattr(loss_module, "LOGIT_ELEMENTS", 4 * 50)

    def records(loss):
        found = []
        for count in (6, positions):
            with recorded() as record:
                hidden = torch.randn(count, 8, requires_grad=True)
                loss(hidden, gathering_head, torch.zeros(count, dtype=torch.int64)).backward()
            found.append(record)
        return found

    assert first_difference(records(supervised_loss_sum)) is None
    if positions:
        told = first_difference(records(loss_of_a_call_per_chunk))
        assert told is not None and "rank 1 has" in told and "none" in told and "test_zero3.py" in told
