"""What a run does with samples it can't use as they are, and with numbers it can't go on from."""

import json

import pytest

from mllm.errors import UserError
from tests.helpers.runs import config, run_here


def listed(run_dir):
    return {line["id"]: line["kind"] for line in map(json.loads, (run_dir / "skipped.jsonl").open())}


def test_long_samples_are_refused_dropped_or_cut_and_listed(tiny_parts, recipe, tmp_path):
    short = {"data__max_length_tokens": 40, "data__packing": "samples", "train__global_batch_size": 12}
    with pytest.raises(UserError, match=r"tokens long, data.max_length_tokens is 40; raise it"):
        run_here(config(tiny_parts, recipe, tmp_path / "e", **short))
    run_here(config(tiny_parts, recipe, tmp_path / "d", **short, data__on_too_long="drop"))
    run_here(config(tiny_parts, recipe, tmp_path / "t", **short, data__on_too_long="truncate_text"))
    dropped, cut = listed(tmp_path / "d"), listed(tmp_path / "t")
    assert dropped and set(dropped.values()) == {"too_long"}
    assert cut.keys() == dropped.keys() and "truncated" in cut.values()


def test_too_many_image_tokens_are_refused_or_counted_as_skipped(tiny_parts, recipe, tmp_path):
    few = {"model__image": {"tiling": "anyres", "max_image_tokens": 40}, "train__global_batch_size": 12}
    with pytest.raises(UserError, match=r"becomes 44 image tokens, model.image.max_image_tokens is 40; set"):
        run_here(config(tiny_parts, recipe, tmp_path / "e", **few))
    run_here(config(tiny_parts, recipe, tmp_path / "s", **few, data__on_bad_sample="skip"))
    run_here(config(tiny_parts, recipe, tmp_path / "d", **few, data__on_too_long="drop"))
    skipped = listed(tmp_path / "s")
    assert skipped == listed(tmp_path / "d") == {f"s{n}": "too_many_image_tokens" for n in range(12) if n % 4 != 3}


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_samples(tiny_parts, recipe, tmp_path):
    with pytest.raises(
        UserError, match=r"(loss|gradient norm) is (nan|inf) at step \d+; samples: s\d+, s\d+"
    ) as caught:
        run_here(config(tiny_parts, recipe, tmp_path / "run", optim__lr=1e30))
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert f"at step {steps[-1] + 1 if steps else 1};" in str(caught.value)
