"""The README's commands one after another, as a user types them, on tiny parts: captions → data → two stages → score."""

import json
import re
import shutil

import pytest
import yaml
from transformers import LlavaForConditionalGeneration

from mllm.settings import dump_yaml
from tests.helpers.commands import PYTHON, command, process, run_script
from tests.helpers.launches import in_ranks
from tests.helpers.tiny import save_image

SCRIPTS = ("train/finetune.py",)


def write_yaml(path, values):
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.slow
def test_the_road_from_captions_to_a_score(tiny_parts, tmp_path, make_config):
    synth = make_config()
    (tmp_path / "synth.yaml").write_text(dump_yaml(synth))
    out, _ = command("-m", "data_recipes.demo", tmp_path / "synth.yaml")
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
    out, _ = command("data", "show", first, "--count", "1")
    assert "[image × 16]" in out and " trained" in out
    out, _ = command("estimate", first, second, "--ranks", "2")
    assert f"{stage1}: 3 steps" in out.replace("\n", "") and "together about" in out
    command("train/finetune.py", "--config", first)
    in_ranks(tmp_path / "ranks", 2, run_script, "train/finetune.py", "--config", str(second))
    losses = [json.loads(line)["loss"] for line in (stage2 / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 3 and (stage2 / "final" / "model.safetensors").is_file()
    _, log = command("train/finetune.py", "--config", second)
    assert "nothing to do" in log

    benchmarks = "easyvqa,clipart,ocr_words"
    out, _ = command("eval/run.py", "--model", stage2, "--benchmarks", benchmarks, "--data", data, "--limit", "60")
    assert "withheld" in out and "swapped" in out and "majority" in out
    results = json.loads((stage2 / "eval" / "results.json").read_text())
    assert set(results["scores"]) == set(benchmarks.split(","))
    page = (stage2 / "eval" / "report.html").read_text()
    assert "data:image/png;base64" in page and page.count("aria-label='training loss") == 2  # one a stage

    picture = save_image(tmp_path / "cat.png")
    out, _ = command("chat", stage2, "--image", picture, "-p", "what is this", "-p", "why", "--max-new-tokens", "4")
    assert out.count("you> ") == 2
    command("export", stage2, tmp_path / "exported", "--layout", "hf")
    question = ["--image", picture, "-p", "what is this", "--json", "--max-new-tokens", "4"]
    answers = [json.loads(command("chat", source, *question)[0]) for source in (stage2, tmp_path / "exported")]
    assert answers[0]["answer"] == answers[1]["answer"] and answers[0]["prompt_tokens"] == answers[1]["prompt_tokens"]
    LlavaForConditionalGeneration.from_pretrained(tmp_path / "exported")


MISTAKES = [
    (["chat", "runs/none"], "runs/none"),
    (["serve", "runs/none", "--port", "0"], "runs/none"),
    (["estimate", "none.yaml"], "none.yaml"),
    (["synth", "none.yaml"], "none.yaml"),
    (["eval/run.py", "--model", "runs/none", "--benchmarks", "easyvqa"], "runs/none"),
    (["eval/run.py", "--model", "runs/none", "--benchmarks", "nonsense"], "nonsense"),
    (["train/finetune.py", "--config", "none.yaml"], "none.yaml"),
    (["train/contrastive.py", "--config", "none.yaml"], "none.yaml"),
]


def assert_one_line(errors, message):
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0] and "Traceback" not in errors


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_what_is_missing_is_named_in_one_line_with_exit_code_2(words, message):
    assert_one_line(command(*words, code=2)[1], message)


@pytest.mark.slow
@pytest.mark.parametrize(
    "program",
    [["mllm", "chat", "runs/none"], *([*PYTHON, script, "--config", "runs/none"] for script in SCRIPTS)],
)
def test_a_process_says_what_a_command_says(program):
    assert_one_line(process(*program, code=2)[1], "runs/none")


@pytest.mark.parametrize(
    "words",
    [
        [],
        *(name.split() for name in ("chat", "serve", "synth", "data show", "estimate", "plan", "export", "import")),
        ["convert-gguf"],
        ["eval/run.py"],
        ["train/finetune.py"],
        ["train/contrastive.py"],
    ],
)
def test_help_shows_an_example(words):
    out, _ = command(*words, "--help")
    assert "example" in out
