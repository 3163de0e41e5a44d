"""The README's commands one after another, as a user types them, on tiny parts: captions → data → two stages → score."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import LlavaForConditionalGeneration

from mllm.settings import dump_yaml
from tests.synthesis.conftest import make_config  # noqa: F401 (a fixture)
from tests.tiny import save_image
from tests.training.test_exactness import free_port

ROOT = Path(__file__).parents[2]
PYTHON = [sys.executable]
MLLM = [sys.executable, "-c", "from mllm.cli import main; main()"]
DEEPSPEED = [shutil.which("deepspeed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") or "deepspeed"]


def run(*command, code=0):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    command = [str(word) for word in command]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout, done.stderr


def write_yaml(path, values):
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.slow
def test_the_road_from_captions_to_a_score(tiny_parts, tmp_path, make_config):  # noqa: F811
    synth = make_config()
    (tmp_path / "synth.yaml").write_text(dump_yaml(synth))
    out, _ = run(*PYTHON, "-m", "data_recipes.demo", tmp_path / "synth.yaml")
    assert re.search(r"data hash [0-9a-f]{64}", out)
    data = synth.output
    shutil.copytree(tmp_path / "inputs" / "easyvqa", data / "easyvqa")

    recipes = {
        stage: write_yaml(
            tmp_path / f"{stage}.yaml",
            {"name": stage, "sources": [{"path": str(data / file), "image_root": str(data), "count": 24}]},
        )
        for stage, file in (("align", "captions.jsonl"), ("instruct", "instruct.jsonl"))
    }
    common = {"optim": {"lr": 1e-3}, "train": {"global_batch_size": 8}}
    stage1, stage2 = tmp_path / "stage1", tmp_path / "stage2"
    first = write_yaml(
        tmp_path / "stage1_config.yaml",
        {
            "run_dir": str(stage1),
            "model": {
                "vision_encoder": {"path": str(tiny_parts / "clip")},
                "language_model": {"path": str(tiny_parts / "lm")},
                "prompt_format": "plain",
                "image": {"fit": "crop"},
            },
            "data": {"recipe": str(recipes["align"]), "max_length_tokens": 256},
            **common,
        },
    )
    second = write_yaml(
        tmp_path / "stage2_config.yaml",
        {
            "run_dir": str(stage2),
            "model": {"init_from": str(stage1 / "final"), "prompt_format": "chatml", "image": {"fit": "crop"}},
            "trainable": {"language_model": "full", "vision_encoder": "full"},
            "data": {
                "recipe": str(recipes["instruct"]),
                "max_length_tokens": 512,
                "packing": "shared_prefix",
                "group_by_image": True,
            },
            "engine": {"ds_config": "ds_configs/zero2.json"},
            **common,
            # After three steps at a usual rate the model says nothing yet, which an evaluation refuses.
            "optim": {"lr": 1e-2},
        },
    )
    out, _ = run(*MLLM, "data", "show", first, "--count", "1")
    assert "[image × 16]" in out and " trained" in out
    out, _ = run(*MLLM, "estimate", first, second, "--ranks", "2")
    assert f"{stage1}: 3 steps" in out.replace("\n", "") and "together about" in out
    run(*PYTHON, "train/finetune.py", "--config", first)
    launcher = ["--num_gpus", "2", "--master_port", str(free_port())]
    run(*DEEPSPEED, *launcher, "train/finetune.py", "--config", second)
    losses = [json.loads(line)["loss"] for line in (stage2 / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 3 and (stage2 / "final" / "model.safetensors").is_file()
    _, log = run(*PYTHON, "train/finetune.py", "--config", second)
    assert "nothing to do" in log

    benchmarks = "easyvqa,clipart,ocr_words"
    out, _ = run(*PYTHON, "eval/run.py", "--model", stage2, "--benchmarks", benchmarks, "--data", data, "--limit", "60")
    assert "withheld" in out and "swapped" in out and "majority" in out
    results = json.loads((stage2 / "eval" / "results.json").read_text())
    assert set(results["scores"]) == set(benchmarks.split(","))
    page = (stage2 / "eval" / "report.html").read_text()
    assert "data:image/png;base64" in page and page.count("aria-label='training loss") == 2  # one a stage

    picture = save_image(tmp_path / "cat.png")
    out, _ = run(*MLLM, "chat", stage2, "--image", picture, "-p", "what is this", "-p", "why", "--max-new-tokens", "4")
    assert out.count("you> ") == 2
    run(*MLLM, "export", stage2, tmp_path / "exported", "--layout", "hf")
    question = ["--image", picture, "-p", "what is this", "--json", "--max-new-tokens", "4"]
    answers = [json.loads(run(*MLLM, "chat", source, *question)[0]) for source in (stage2, tmp_path / "exported")]
    assert answers[0]["answer"] == answers[1]["answer"] and answers[0]["prompt_tokens"] == answers[1]["prompt_tokens"]
    LlavaForConditionalGeneration.from_pretrained(tmp_path / "exported")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ([*MLLM, "chat", "runs/none"], "runs/none"),
        ([*MLLM, "serve", "runs/none", "--port", "0"], "runs/none"),
        ([*MLLM, "estimate", "none.yaml"], "none.yaml"),
        ([*MLLM, "synth", "none.yaml"], "none.yaml"),
        ([*PYTHON, "eval/run.py", "--model", "runs/none", "--benchmarks", "easyvqa"], "runs/none"),
        ([*PYTHON, "eval/run.py", "--model", "runs/none", "--benchmarks", "nonsense"], "nonsense"),
        ([*PYTHON, "train/finetune.py", "--config", "none.yaml"], "none.yaml"),
        ([*PYTHON, "train/contrastive.py", "--config", "none.yaml"], "none.yaml"),
    ],
)
def test_what_is_missing_is_named_in_one_line_with_exit_code_2(command, message):
    _, errors = run(*command, code=2)
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0] and "Traceback" not in errors


@pytest.mark.parametrize(
    "command",
    [
        [*MLLM],
        *(
            [*MLLM, *name.split()]
            for name in ("chat", "serve", "synth", "data show", "estimate", "plan", "export", "import")
        ),
        [*MLLM, "convert-gguf"],
        [*PYTHON, "eval/run.py"],
        [*PYTHON, "train/finetune.py"],
        [*PYTHON, "train/contrastive.py"],
    ],
)
def test_help_shows_an_example(command):
    out, _ = run(*command, "--help")
    assert "example" in out
