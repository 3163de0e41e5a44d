"""A run that is killed again and again, at moments of computing and of writing, is the run that never was."""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mllm.contrastive.settings import ContrastiveSettings
from mllm.finetune.settings import FinetuneSettings
from mllm.preference.settings import PreferenceSettings
from mllm.settings import validate_settings
from tests.helpers.launches import FORKS
from tests.helpers.pairs import pair_config, write_pairs
from tests.helpers.runs import config, series
from tests.helpers.shards import clip_values, stream_of, write_shards

FILE_EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree", "os.scandir"}


def train(values, kill_at_event):
    """In a process of its own: train, and be killed before the `kill_at_event`-th touch of a checkpoint (0: never)."""
    from mllm.contrastive.run import train_clip
    from mllm.finetune.run import finetune
    from mllm.preference.run import train_preference

    torch.set_num_threads(1)
    checkpoints = str(Path(values["run_dir"]) / "checkpoints")
    seen = 0

    def watch(event, arguments):
        nonlocal seen
        if event in FILE_EVENTS and any(str(argument).startswith(checkpoints) for argument in arguments):
            seen += 1
            if seen == kill_at_event:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if "preference" in values:
        train_preference(validate_settings(PreferenceSettings, values, "test"))
    elif "pairs" in values["data"]:
        train_clip(validate_settings(ContrastiveSettings, values, "test"))
    else:
        finetune(validate_settings(FinetuneSettings, values, "test"))


def run(values, kill_at_event=0, kill_after_s=None):
    """The exit code of a run; negative if it was killed."""
    process = FORKS.Process(target=train, args=(values, kill_at_event))
    process.start()
    if kill_after_s is not None:
        metrics = Path(values["run_dir"]) / "metrics.jsonl"
        size = metrics.stat().st_size if metrics.is_file() else 0
        while process.is_alive() and not (metrics.is_file() and metrics.stat().st_size > size):
            time.sleep(0.002)  # the clock starts with the first new step
        time.sleep(kill_after_s)
        process.kill()
    process.join(120)
    return process.exitcode


def weights(run_dir):
    return load_file(run_dir / "final" / "model.safetensors")


@pytest.mark.slow
def test_ten_kills_change_neither_samples_nor_losses_nor_weights(tiny_parts, recipe, tmp_path):
    def values(name):
        out = config(tiny_parts, recipe, tmp_path / name, data__packing="shared_prefix", data__group_by_image=True)
        out["train"] |= {"save_every_steps": 4, "epochs": 24, "keep_checkpoints": 1}
        out["trainable"] = {"language_model": "lora", "lora": {"rank": 4, "alpha": 8, "dropout": 0.3}}
        return out

    assert run(values("whole")) == 0
    rng = random.Random(3)
    codes, half_written = [], 0
    for kill in range(10):
        moment = {"kill_at_event": rng.randrange(10, 60)} if kill % 2 else {"kill_after_s": rng.uniform(0, 0.2)}
        codes.append(run(values("killed"), **moment))
        half_written += any((tmp_path / "killed" / "checkpoints").glob(".*"))
    assert codes == [-signal.SIGKILL] * 10 and half_written >= 3
    assert run(values("killed")) == 0
    assert series(tmp_path / "killed") == series(tmp_path / "whole")
    ours, theirs = weights(tmp_path / "killed"), weights(tmp_path / "whole")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert [path.name for path in (tmp_path / "killed" / "checkpoints").iterdir()] == ["step_00000072"]


@pytest.mark.slow
def test_kills_change_neither_losses_nor_weights_of_a_run_of_pairs_nor_the_mean_of_its_rewards(tiny_parts, tmp_path):
    pairs = write_pairs(tmp_path / "pairs")

    def values(name):
        objective = {"preset": "mpo", "beta": 2.0}
        out = pair_config(tiny_parts, pairs, tmp_path / name, objective, train__epochs=4, train__micro_batch_size=8)
        out["train"] |= {"save_every_steps": 2, "keep_checkpoints": 1}
        return out

    assert run(values("whole")) == 0
    moments = [{"kill_at_event": 25}, {"kill_after_s": 0.05}, {"kill_at_event": 40}]
    assert [run(values("killed"), **moment) for moment in moments] == [-signal.SIGKILL] * 3
    assert run(values("killed")) == 0
    assert series(tmp_path / "killed") == series(tmp_path / "whole")
    ours, theirs = weights(tmp_path / "killed"), weights(tmp_path / "whole")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    means = []
    for name in ("whole", "killed"):
        (last,) = (tmp_path / name / "checkpoints").iterdir()
        means.append(json.loads((last / "progress.json").read_text())["callbacks"]["RewardMean"])
    assert means[0] == means[1] and means[0]["sum"] != 0.0


@pytest.mark.slow
def test_kills_change_nothing_of_a_contrastive_run_on_a_stream_of_shards(tmp_path):
    path = write_shards(tmp_path / "shards", (7, 9, 8, 6), broken=(4, 20))

    def values(name):
        sources = [stream_of(path, 24), {"path": str(tmp_path / "shards" / "00001.tar"), "weight": 2.0}]
        loop = {"train__max_steps": 24, "train__save_every_steps": 3, "train__keep_checkpoints": 1, "train__epochs": 9}
        return clip_values(sources, tmp_path / name, data__on_bad_sample="skip", data__workers=2, **loop)

    assert run(values("whole")) == 0
    moments = [{"kill_at_event": 30}, {"kill_after_s": 0.02}]
    assert [run(values("killed"), **moment) for moment in moments] == [-signal.SIGKILL] * 2
    assert run(values("killed")) == 0
    assert series(tmp_path / "killed") == series(tmp_path / "whole") and len(series(tmp_path / "whole")[0]) == 24
    ours, theirs = weights(tmp_path / "killed"), weights(tmp_path / "whole")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    skipped = [sorted((tmp_path / name / "skipped.jsonl").read_text().splitlines()) for name in ("whole", "killed")]
    assert skipped[0] == skipped[1] and len(skipped[0]) == 2
