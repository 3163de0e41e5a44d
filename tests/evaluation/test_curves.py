"""The training curves of a report."""

import json

import yaml

from mllm.evaluation.report import training_runs
from mllm.html import draw_curve


def write_run(root, name, losses, init_from=None):
    final = root / name / "final"
    final.mkdir(parents=True)
    lines = [json.dumps({"loss": loss, "tokens": 10, "step_s": 2.0}) for loss in losses]
    (root / name / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (final / "run_config.yaml").write_text(yaml.safe_dump({"model": {"init_from": init_from and str(init_from)}}))
    return final


def test_runs_are_found_back_to_the_first_stage(tmp_path):
    first = write_run(tmp_path, "stage1", [3.0, 2.0])
    second = write_run(tmp_path, "stage2", [1.5, 1.0, 0.5], first)
    runs = training_runs(second)
    assert [(run.name, run.losses, run.tokens, run.seconds) for run in runs] == [
        ("stage1", (3.0, 2.0), 20, 4.0),
        ("stage2", (1.5, 1.0, 0.5), 30, 6.0),
    ]


def test_a_model_without_its_run_has_no_curves(tmp_path):
    assert training_runs(tmp_path) == []


def test_a_drawing_falls_when_the_loss_falls(tmp_path):
    run = training_runs(write_run(tmp_path, "a<b", [4.0, 2.0, 1.0]))[0]
    figure = draw_curve(run.name, run.losses)
    assert "a&lt;b" in figure
    raw = figure.split("<polyline")[1].split("points='")[1].split("'")[0]
    heights = [float(point.split(",")[1]) for point in raw.split()]
    assert heights == sorted(heights) and len(heights) == 3
    constant = draw_curve("flat", training_runs(write_run(tmp_path, "flat", [1.0]))[0].losses)
    assert "nan" not in constant
