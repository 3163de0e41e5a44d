"""The loss is the same however the work is laid out; a resumed run is the run that was not stopped."""

import json
from itertools import product

import pytest
import torch
import yaml

from mllm.checkpoint.ours import load
from mllm.errors import UserError
from mllm.finetune.run import finetune
from mllm.finetune.settings import FinetuneSettings
from mllm.generation.kinds import read_kind
from mllm.generation.run import train_diffusion
from mllm.grpo.run import learn_from_rewards
from mllm.grpo.settings import GrpoSettings
from mllm.settings import validate_settings
from mllm.training.ds_config import fill_ds_config
from tests.helpers.commands import command
from tests.helpers.generation import values_of as pictures_values
from tests.helpers.generation import write_clip
from tests.helpers.generation import write_pairs as write_picture_pairs
from tests.helpers.launches import launch_runs
from tests.helpers.own_rewards import reward_config
from tests.helpers.pairs import learn, pair_config, write_pairs
from tests.helpers.runs import ROOT, config, metrics, run_here, series, skipped_ids
from tests.helpers.tiny import save_image

pytestmark = pytest.mark.slow

STAGES, RANKS, ACCUMULATIONS = (0, 1, 2, 3), (1, 2), (1, 2)
BAD = ["bad0", "bad1", "bad2"]


TILED = {"model__image": {"tiling": "anyres"}}


@pytest.mark.parametrize("layout", [{}, TILED], ids=["square", "tiled"])
@pytest.mark.parametrize(
    "changes",
    [
        {"train__micro_batch_size": 2},
        {"data__packing": "samples"},
        {"data__packing": "shared_prefix", "data__group_by_image": False},
        {"train__tiles_together": 2},
    ],
)
def test_loss_does_not_depend_on_micro_batches_or_packing(tiny_parts, recipe, tmp_path, changes, layout):
    run_here(config(tiny_parts, recipe, tmp_path / "a", **layout))
    run_here(config(tiny_parts, recipe, tmp_path / "b", **layout, **changes))
    (ids_a, loss_a, norm_a), (ids_b, loss_b, norm_b) = series(tmp_path / "a"), series(tmp_path / "b")
    assert ids_a == ids_b and len(ids_a) == 6
    assert loss_b == pytest.approx(loss_a, rel=1e-4)
    assert norm_b[0] == pytest.approx(norm_a[0], rel=1e-5)


def write_recipe_with_bad_images(root, bad):
    """One sample with a whole image, and one for each of the names `bad` whose image breaks off behind its header."""
    root.mkdir()
    save_image(root / "good.png")
    for name in bad:
        (root / f"{name}.png").write_bytes((root / "good.png").read_bytes()[:60])
    lines = [
        {
            "id": name,
            "messages": [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "red"}],
            "images": [f"{name}.png"],
        }
        for name in ("good", *bad)
    ]
    (root / "s.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    (root / "r.yaml").write_text(
        yaml.safe_dump({"name": "r", "sources": [{"path": str(root / "s.jsonl"), "image_root": str(root)}]})
    )


def pairs_run(tiny_parts, root, name, stage=None):
    """A run of odd steps of pairs, with every kind of term; stage: of ZeRO, at 3 with every tensor partitioned."""
    objective = {"terms": {"sigmoid": 1, "bco": 0.5, "sft": 0.5, "image": 1}, "damage": {"kind": "noise"}}
    own = pair_config(tiny_parts, write_pairs(root / "pairs"), root / name, objective, train__epochs=2)
    return over_ranks(own, root, name, stage)


def over_ranks(own, root, name, stage):
    """Settings of a run by two ranks at a stage of ZeRO; as they are without one."""
    if stage is not None:
        ds_config = json.loads((ROOT / f"ds_configs/zero{stage}.json").read_text())
        ds_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        (root / f"{name}.json").write_text(json.dumps(ds_config))
        own["engine"] = {"kind": "deepspeed", "ds_config": str(root / f"{name}.json"), "world_size": 2}
    return own


@pytest.fixture(scope="module")
def one_process(tiny_parts, recipe, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("one")
    run_here(config(tiny_parts, recipe, run_dir))
    return series(run_dir)


@pytest.fixture(scope="module")
def under_zero(tiny_parts, recipe, tmp_path_factory):
    """The root of runs named by stage, ranks and accumulation: the global batch of 4 rows as so many micro-batches on each
    of the ranks. `resumed` is 2_2_1, stopped after 3 steps and resumed; `projector_1` and `_2` train that part alone;
    `skipping` meets the images `BAD`."""
    root = tmp_path_factory.mktemp("zero")

    def values(name, stage, ranks, accumulation=1, **sections):
        own = config(tiny_parts, recipe, root / name, train__micro_batch_size=4 // (ranks * accumulation))
        engine = {"kind": "deepspeed", "ds_config": f"ds_configs/zero{stage}.json", "world_size": ranks}
        return own | {"engine": engine} | sections

    runs = {
        ranks: [
            (values(f"{stage}_{ranks}_{accumulation}", stage, ranks, accumulation), None)
            for stage, accumulation in product(STAGES, ACCUMULATIONS)
        ]
        for ranks in RANKS
    }
    write_recipe_with_bad_images(root / "bad", BAD)
    skips = {"data__on_bad_sample": "skip", "train__epochs": 1}
    skipping = config(tiny_parts, root / "bad" / "r.yaml", root / "skipping", **skips)
    skipping["engine"] = {"kind": "deepspeed", "ds_config": "ds_configs/zero2.json"}
    more = [(values(f"projector_{stage}", stage, 2, trainable={}), None) for stage in (1, 2)]
    of_answers = [
        (
            over_ranks(reward_config(tiny_parts, recipe, root / f"answers_{stage}"), root, f"answers_{stage}", stage),
            None,
        )
        for stage in ("2", "3")
    ]
    of_pairs = [pairs_run(tiny_parts, root, f"pairs_{stage}", f"{stage}") for stage in (2, 3)]
    of_pictures = pictures_config(root, root / "pictures_2") | {"engine": {"ds_config": "zero2", "world_size": 2}}
    # Before stage 3, with which DeepSpeed gives the whole process another linear function.
    runs[2] = [(values("resumed", 2, 2), 3), (skipping, None), *more, (of_pairs[0], 2), of_answers[0], *runs[2]]
    runs[2].insert(0, (of_pictures, 2))
    runs[2] += [(of_pairs[1], None), of_answers[1]]
    for ranks, planned in runs.items():
        (root / str(ranks)).mkdir()
        launch_runs(planned, root / str(ranks), ranks)
    return root


@pytest.mark.parametrize("accumulation", ACCUMULATIONS)
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("stage", STAGES)
def test_loss_under_zero_equals_one_process(one_process, under_zero, stage, ranks, accumulation):
    (ids_a, loss_a, norm_a), (ids_b, loss_b, norm_b) = (
        one_process,
        series(under_zero / f"{stage}_{ranks}_{accumulation}"),
    )
    assert ids_a == ids_b and len(ids_a) == 6
    assert loss_b == pytest.approx(loss_a, rel=1e-5)
    assert norm_b[0] == pytest.approx(norm_a[0], rel=1e-5)


def pictures_config(root, run_dir):
    """A run of pictures from text, whose pairs and CLIP lie in `root`."""
    folder = root / "shown"
    if not folder.is_dir():
        folder.mkdir()
        write_picture_pairs(folder)
        write_clip(root / "clip")
    return pictures_values(folder / "pairs.jsonl", root / "clip", run_dir)


def test_pictures_learned_on_two_ranks_with_a_stop_are_those_of_one_process(under_zero):
    train_diffusion(read_kind(pictures_config(under_zero, under_zero / "pictures_1"), "test"))
    (ids_a, loss_a, norm_a), (ids_b, loss_b, norm_b) = (series(under_zero / f"pictures_{n}") for n in (1, 2))
    assert ids_a == ids_b and len(ids_a) == 4
    assert loss_b == pytest.approx(loss_a, rel=1e-5) and norm_b == pytest.approx(norm_a, rel=1e-4)
    held_a, held_b = ([s["heldout_loss"] for s in metrics(under_zero / f"pictures_{n}")[1::2]] for n in (1, 2))
    assert held_b == pytest.approx(held_a, rel=1e-5)


def test_resumed_run_under_zero_equals_the_uninterrupted_one(under_zero):
    assert series(under_zero / "resumed") == series(under_zero / "2_2_1")


@pytest.mark.parametrize("layout", [{}, TILED], ids=["square", "tiled"])
def test_stopped_and_resumed_run_equals_the_uninterrupted_one(tiny_parts, recipe, tmp_path, layout):
    run_here(config(tiny_parts, recipe, tmp_path / "whole", **layout))
    settings = validate_settings(FinetuneSettings, config(tiny_parts, recipe, tmp_path / "parts", **layout), "test")
    assert finetune(settings, stop_after=3) is None
    assert finetune(settings) == tmp_path / "parts" / "final"
    (ids_a, loss_a, norm_a), (ids_b, loss_b, norm_b) = series(tmp_path / "whole"), series(tmp_path / "parts")
    assert ids_a == ids_b
    assert loss_a == loss_b and norm_a == norm_b


def test_a_ds_config_that_contradicts_the_settings_is_refused_with_both_values(tiny_parts, recipe, tmp_path):
    settings = validate_settings(FinetuneSettings, config(tiny_parts, recipe, tmp_path), "test")
    with pytest.raises(UserError, match=r"gradient_clipping=2.0, our settings say 0.5"):
        fill_ds_config({"gradient_clipping": 2.0}, settings.optim, settings.train)


def test_preference_under_zero_stopped_and_resumed_equals_one_process(tiny_parts, under_zero):
    learn(pairs_run(tiny_parts, under_zero, "pairs_one"))
    own = metrics(under_zero / "pairs_one")
    told = [name for name in own[0] if name.startswith(("reward", "chosen", "rejected", "image", "loss"))]
    for stage in (2, 3):
        found = metrics(under_zero / f"pairs_{stage}")
        assert len(found) == len(own) == 4
        for a, b in zip(found, own, strict=True):
            assert a["sample_ids"] == b["sample_ids"] and a["targets"] == b["targets"] == 5
            assert [a[n] for n in told] == pytest.approx([b[n] for n in told], rel=1e-5, abs=1e-5), stage
        assert found[0]["grad_norm"] == pytest.approx(own[0]["grad_norm"], rel=1e-5)


def test_answers_sampled_by_ranks_and_what_they_teach_are_those_of_one_process(tiny_parts, recipe, under_zero):
    values = reward_config(tiny_parts, recipe, under_zero / "answers_one")
    learn_from_rewards(validate_settings(GrpoSettings, values, "test"))
    own, said = metrics(under_zero / "answers_one"), (under_zero / "answers_one" / "answers.jsonl").read_text()
    for stage in (2, 3):
        found = metrics(under_zero / f"answers_{stage}")
        assert (under_zero / f"answers_{stage}" / "answers.jsonl").read_text().splitlines()[:3] == said.splitlines()[:3]
        for name in ("reward", "reward_std", "targets", "answer_tokens"):
            assert found[0][name] == own[0][name], stage
        assert found[0]["grad_norm"] == pytest.approx(own[0]["grad_norm"], rel=1e-5)
        assert len(found) == 2 and found[1]["sample_ids"] == own[1]["sample_ids"]


@pytest.mark.parametrize("stage", [1, 2])
def test_a_run_that_trains_the_projector_alone_saves_weights_that_zero_keeps_as_views(under_zero, stage):
    model, _ = load(under_zero / f"projector_{stage}" / "final")
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_bad_images_are_listed_whichever_rank_met_them(under_zero):
    assert skipped_ids(under_zero / "skipping") == BAD  # each rank decodes two of the four images


def test_corrupt_image_is_an_error_or_a_listed_skip(tiny_parts, tmp_path):
    root = tmp_path / "bad"
    write_recipe_with_bad_images(root, ["bad"])
    with pytest.raises(UserError, match=r"bad\.png"):
        run_here(config(tiny_parts, root / "r.yaml", tmp_path / "e"))
    run_here(config(tiny_parts, root / "r.yaml", tmp_path / "s", data__on_bad_sample="skip"))
    assert skipped_ids(tmp_path / "s") == ["bad"]


def test_user_mistakes_end_with_one_line_and_exit_code_2(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("run_dir: x\nmodle: {}\n")
    _, said = command("train/finetune.py", "--config", path, code=2)
    assert "c.yaml:2: unknown key 'modle'; did you mean 'model'?" in said
    assert "Traceback" not in said
