"""Training on torch's own fully sharded data parallelism: two ranks against one process."""

import pytest
import torch

from mllm.checkpoint.ours import load
from mllm.errors import UserError
from mllm.finetune.run import finetune
from mllm.finetune.settings import FinetuneSettings
from mllm.settings import validate_settings
from tests.helpers.launches import launch_runs
from tests.helpers.pairs import LORA as UPDATES_ALONE
from tests.helpers.pairs import learn, pair_config, write_pairs
from tests.helpers.runs import config, metrics, run_here, series

LORA = {"language_model": "lora", "projector": "full", "lora": {"rank": 4, "alpha": 8, "dropout": 0.0}}
CASES = {
    "whole": {"train__epochs": 7},
    "accumulated": {"train__global_batch_size": 6, "train__gradient_checkpointing": True},
    "packed": {"data__packing": "shared_prefix", "train__global_batch_size": 12},
    "lora": {"trainable": LORA, "train__gradient_checkpointing": True},
    "qlora": {"trainable": LORA | {"language_model": "qlora"}},
    "tiles": {"model__image": {"tiling": "anyres"}, "train__tiles_together": 2, "train__max_steps": 2},
    "low": {"train__dtype": "bfloat16"},
    "watched": {"train__max_steps": 4},
}


def values_of(name, parts, recipe, run_dir):
    changes = dict(CASES[name])
    trainable = changes.pop("trainable", None)
    values = config(parts, recipe, run_dir, **changes)
    if name == "watched":
        questions = {"file": str(recipe.parent / "samples.jsonl"), "image_root": str(recipe.parent), "count": 5}
        values["samples"] = questions | {"every_steps": 2, "max_new_tokens": 6}
        values["eval"] = {"recipe": str(recipe), "every_steps": 2}
    return values | {"trainable": trainable} if trainable else values


def pairs_of(tiny_parts, root, name):
    """A run of pairs, compared with the model without its updates."""
    objective = {"reference": {"kind": "adapters_off"}}
    own = pair_config(tiny_parts, write_pairs(root / "data"), root / name, objective, train__epochs=1)
    return own | {"trainable": UPDATES_ALONE}


@pytest.fixture(scope="module")
def runs(tiny_parts, recipe, tmp_path_factory):
    """The directory of every case's run, on two ranks; `stopped` is `whole`, stopped after 5 steps and resumed."""
    root = tmp_path_factory.mktemp("fsdp")
    planned = []
    for name in [*CASES, "stopped"]:
        values = values_of("whole" if name == "stopped" else name, tiny_parts, recipe, root / name)
        planned.append([values | {"engine": {"kind": "fsdp", "world_size": 2}}, 5 if name == "stopped" else None])
    planned.append([pairs_of(tiny_parts, root, "pairs") | {"engine": {"kind": "fsdp", "world_size": 2}}, None])
    launch_runs(planned, root)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", ["whole", "accumulated", "packed", "lora", "qlora", "tiles"])
def test_two_ranks_of_fsdp_equal_one_process(runs, tiny_parts, recipe, tmp_path, name):
    """Losses of every step, 21 of them in the longest run, and the first gradient norm."""
    run_here(values_of(name, tiny_parts, recipe, tmp_path / "one"))
    (ids_a, loss_a, norm_a), (ids_b, loss_b, norm_b) = series(tmp_path / "one"), series(runs / name)
    assert ids_a == ids_b
    assert len(ids_a) == 21 or name != "whole"
    assert loss_b == pytest.approx(loss_a, rel=1e-5)
    assert norm_b[0] == pytest.approx(norm_a[0], rel=1e-5)


@pytest.mark.slow
def test_answers_and_held_out_loss_while_fsdp_trains_are_those_of_one_process(runs, tiny_parts, recipe, tmp_path):
    """The questions are asked of all ranks at once, with and without an image, of embeddings and a head that are spread."""
    values = values_of("watched", tiny_parts, recipe, tmp_path / "one")
    finetune(validate_settings(FinetuneSettings, values, "test"))
    assert (runs / "watched" / "samples.jsonl").read_text() == (tmp_path / "one" / "samples.jsonl").read_text()
    ours, theirs = (
        [step["heldout_loss"] for step in metrics(run_dir) if "heldout_loss" in step]
        for run_dir in (runs / "watched", tmp_path / "one")
    )
    assert len(ours) == 2 and ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.slow
def test_pairs_under_fsdp_are_compared_with_the_model_without_its_updates_as_in_one_process(runs, tiny_parts):
    learn(pairs_of(tiny_parts, runs, "pairs_one"))
    (ids_a, loss_a, norm_a), (ids_b, loss_b, norm_b) = series(runs / "pairs_one"), series(runs / "pairs")
    assert ids_a == ids_b and len(ids_a) == 2
    assert loss_b == pytest.approx(loss_a, rel=1e-5) and norm_b == pytest.approx(norm_a, rel=1e-4)


@pytest.mark.slow
def test_a_resumed_run_of_fsdp_is_the_uninterrupted_one(runs):
    assert series(runs / "stopped") == series(runs / "whole")


@pytest.mark.slow
def test_bfloat16_under_fsdp_learns_from_float32_weights(runs, tiny_parts, recipe, tmp_path):
    run_here(values_of("low", tiny_parts, recipe, tmp_path / "one"))
    assert series(runs / "low")[1] == pytest.approx(series(tmp_path / "one")[1], rel=2e-2)
    weights = load(runs / "low" / "final")[0].state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


@pytest.mark.parametrize(
    ("engine", "changes", "words"),
    [
        ({"kind": "fsdp", "ds_config": "ds_configs/zero3.json"}, {}, "ds_config is for DeepSpeed"),
        ({"kind": "fsdp"}, {"optim__kind": "adamw_8bit"}, "doesn't run under engine.kind fsdp"),
    ],
)
def test_what_fsdp_can_t_do_is_refused_before_a_process_group_is_made(
    tiny_parts, recipe, tmp_path, engine, changes, words
):
    values = config(tiny_parts, recipe, tmp_path / "run", **changes) | {"engine": engine}
    with pytest.raises(UserError, match=words):
        run_here(values)
    assert not torch.distributed.is_initialized()
