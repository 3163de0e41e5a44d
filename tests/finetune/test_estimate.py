"""What `mllm estimate` counts."""

import pytest

from mllm.errors import UserError
from mllm.finetune.estimate import estimate_runs
from mllm.finetune.run import finetune
from mllm.finetune.settings import FinetuneSettings
from mllm.kernels import choice
from mllm.kernels.varlen import TorchVarlen
from mllm.settings import validate_settings
from tests.helpers.runs import config, second_stage


def settings(values):
    return validate_settings(FinetuneSettings, values, "test")


def test_runs_that_follow_each_other_are_estimated_before_the_first_has_begun(tiny_parts, recipe, tmp_path):
    first = settings(config(tiny_parts, recipe, tmp_path / "one"))
    one, two = estimate_runs([first, second_stage(tiny_parts, recipe, tmp_path)])
    assert (one.steps_left, two.steps_left) == (6, 6)
    assert two.tokens_per_step != one.tokens_per_step > 0  # another prompt format
    assert one.seconds(2) == pytest.approx(one.seconds(1) / 2) and one.seconds(1) > 0
    assert not (tmp_path / "one").exists()


def test_what_is_done_is_not_counted(tiny_parts, recipe, tmp_path):
    first = settings(config(tiny_parts, recipe, tmp_path / "one"))
    finetune(first, stop_after=4)
    assert estimate_runs([first])[0].steps_left == 2
    finetune(first)
    one, two = estimate_runs([first, second_stage(tiny_parts, recipe, tmp_path)])
    assert one.steps_left == 0 and one.seconds(1) == 0 and two.steps_left == 6


def test_an_estimate_computes_as_the_run_would(tiny_parts, recipe, tmp_path, monkeypatch):
    """Its attention kernel, and recomputation of activations."""
    monkeypatch.setattr(choice, "gpu_capability", lambda: 9)
    passes = []
    forward = TorchVarlen.forward
    monkeypatch.setattr(TorchVarlen, "forward", lambda *args: passes.append(1) or forward(*args))
    counts = {}
    for checkpointing in (False, True):
        passes.clear()
        values = config(tiny_parts, recipe, tmp_path / "run", train__dtype="autocast")
        values["train"]["gradient_checkpointing"] = checkpointing
        estimate_runs([settings(values)])
        counts[checkpointing] = len(passes)
    tried = 2  # passes of the kernel's trial
    assert counts[True] - tried == 2 * (counts[False] - tried) > 0


def test_an_origin_that_no_run_writes_is_refused(tiny_parts, recipe, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        estimate_runs([second_stage(tiny_parts, recipe, tmp_path)])
