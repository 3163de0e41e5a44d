"""A contrastive run keeps the promises of any run: it resumes, is done once, and records what its task reports."""

import json
import math

import pytest
import yaml

import mllm
from mllm.contrastive.run import train_clip
from mllm.contrastive.settings import ContrastiveSettings
from mllm.errors import UserError
from mllm.settings import validate_settings
from tests.helpers.clip import train, values_of
from tests.helpers.runs import config, metrics, series

pytestmark = pytest.mark.slow


def test_a_run_that_was_stopped_goes_on_as_if_it_never_was_and_a_finished_one_is_left_alone(pairs, tmp_path, caplog):
    caplog.set_level("INFO")
    train(values_of(pairs, tmp_path / "whole"))
    settings = validate_settings(ContrastiveSettings, values_of(pairs, tmp_path / "parts"), "test")
    assert train_clip(settings, stop_after=1) is None and not (tmp_path / "parts" / "final").exists()
    final = train_clip(settings)
    assert final == tmp_path / "parts" / "final" and series(tmp_path / "parts") == series(tmp_path / "whole")
    logs = [json.loads((tmp_path / n / "final" / "training_log.json").read_text()) for n in ("parts", "whole")]
    assert logs[0]["heldout"] == logs[1]["heldout"]
    before = (final / "model.safetensors").stat().st_mtime_ns
    assert "nothing to do" not in caplog.text
    assert train_clip(settings) == final and (final / "model.safetensors").stat().st_mtime_ns == before
    assert f"{final} is already there, of these settings: nothing to do" in caplog.text
    with pytest.raises(UserError, match=r"is finished: optim\.lr is 0\.003 there and 0\.002 here"):
        train(values_of(pairs, tmp_path / "parts", optim__lr=2e-3))


@pytest.mark.parametrize("chunk_size", [8, 3])
def test_the_factor_on_cosines_is_recorded_at_every_step(pairs, tmp_path, chunk_size):
    chunks = {"train__micro_batch_size": chunk_size, "loss__grad_cache": chunk_size < 8}
    train(values_of(pairs, tmp_path / "run", **chunks))
    factors = [step["logit_scale"] for step in metrics(tmp_path / "run")]
    assert factors[0] == pytest.approx(1 / 0.07, rel=1e-6)
    assert all(abs(math.log(factor * 0.07)) < 0.02 for factor in factors) and len(set(factors)) == len(factors) == 4
    for step in metrics(tmp_path / "run"):
        assert 0 < step["batch_accuracy"] <= 1 and step["pairs_per_second"] == pytest.approx(8 / step["step_s"])
        assert len(step["sample_ids"]) == 1 and step["sample_ids"][0].startswith("sha256:")


def test_one_call_trains_what_a_file_describes(pairs, tiny_parts, recipe, tmp_path):
    clip = values_of(pairs, tmp_path / "clip") | {"train": {"global_batch_size": 8, "max_steps": 1}}
    words = config(tiny_parts, recipe, tmp_path / "words", train__max_steps=2)
    for name, values in (("clip", clip), ("words", words)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))
    assert mllm.train(tmp_path / "clip.yaml") == tmp_path / "clip" / "final"
    assert mllm.train(str(tmp_path / "words.yaml"), ["train.epochs=1"], stop_after=1) is None
    assert (
        mllm.train(mllm.load_config(str(tmp_path / "words.yaml"), ["train.epochs=1"])) == tmp_path / "words" / "final"
    )
    assert [step["step"] for step in metrics(tmp_path / "words")] == [1, 2]
    with pytest.raises(UserError, match=r"words\.yaml: unknown key 'modle'"):
        mllm.train(tmp_path / "words.yaml", ["modle=1"])
