"""The study of parts: how choices are named, what intervals say, and a whole small study, gone on with."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mllm.errors import UserError
from mllm.model.projectors import PROJECTORS

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def study():
    sys.path.insert(0, str(BENCHMARKS))
    yield SimpleNamespace(runs=importlib.import_module("parts_study"), table=importlib.import_module("parts_table"))
    sys.path.remove(str(BENCHMARKS))


def test_a_part_is_a_name_with_settings_behind_it(study):
    part = study.runs.Part.of("clip/b16,feature_layer=-1,class_token=keep")
    assert (part.name, part.settings) == ("clip/b16", {"feature_layer": -1, "class_token": "keep"})
    assert study.runs.Part.of("grid").settings == {}
    with pytest.raises(UserError, match="'shuffle' is no setting; write NAME,key=value"):
        study.runs.Part.of("mlp2x_gelu,shuffle")


def test_every_registered_connector_is_taken_and_the_depths_of_one_family_once(study):
    names = study.runs.connectors()
    assert len(names) == len(set(names)) == len(list(PROJECTORS)) and names[0] == "mlp2x_gelu"
    assert set(names) - {"mlp2x_gelu"} <= set(PROJECTORS)


def test_a_study_has_as_many_samples_as_a_run_is_trained_on(study, tmp_path):
    settings = study.runs.material(tmp_path, samples=101, questions=7)
    counted = settings.trained.model_dump()
    samples = {name: count * study.runs.SAMPLES_OF_A_SCENE.get(name, 1) for name, count in counted.items()}
    assert sum(samples.values()) >= 101 and {name for name, count in samples.items() if count} == set(
        study.runs.BENCHMARKS
    )
    assert {count for count in settings.asked.model_dump().values() if count} == {7}


def test_an_interval_covers_the_mean_and_widens_where_seeds_or_pictures_disagree(study):
    rng = np.random.default_rng(1)
    groups = [str(n // 2) for n in range(200)]

    def answers(share):
        return {"groups": groups, "model": (rng.random(200) < share).astype(float).tolist()}

    alike = [answers(0.5) for _ in range(3)]
    unlike = [answers(share) for share in (0.2, 0.5, 0.8)]
    widths = []
    for runs in (alike, unlike):
        share, low, high = study.table.interval(runs)
        assert share == pytest.approx(100 * np.mean([run["model"] for run in runs])) and low < share < high
        widths.append(high - low)
    assert widths[1] > 2 * widths[0]
    certain = [{"groups": groups, "model": [1.0] * 200}] * 2
    assert study.table.interval(certain) == (100.0, 100.0, 100.0)
    # All questions of a picture are drawn together: one picture, one mean.
    assert study.table.interval([{"groups": ["a"] * 4, "model": [1.0, 0.0, 0.0, 0.0]}]) == (25.0, 25.0, 25.0)


def result(encoder, seed, right):
    answers = {"groups": ["a", "b"], "model": right, "withheld": [0.0, 1.0], "majority": [0.0, 0.0]}
    costs = dict.fromkeys(
        ("image_tokens_per_picture", "tokens_per_sample", "connector_millions", "training_s", "question_s"), 1.0 + seed
    )
    named = {"encoder": encoder, "connector": "linear", "tiling": "square"}
    return {**named, "seed": seed, "answers": {"shape": answers}, "costs": costs}


def test_rows_are_means_over_seeds_the_best_first_and_what_is_refused_is_named(study):
    results = [result("a", 0, [0.0, 0.0]), result("b", 0, [1.0, 1.0]), result("a", 1, [1.0, 0.0])]
    rows = study.table.rows_of(results)
    assert [(row["encoder"], row["seeds"], row["mean"]) for row in rows] == [("b", [0], 100.0), ("a", [0, 1], 25.0)]
    assert rows[1]["scores"]["shape"]["by_seed"] == {0: 0.0, 1: 50.0} and rows[1]["costs"]["training_s"] == 1.5
    text = study.table.as_markdown(rows, results, {"c + linear + square": "its grid is odd"})
    assert "| b | linear | square | 1 | 100.0 [100.0, 100.0] | 100.0 |" in text
    assert "| image withheld, all runs |  |  |  | 50.0 | 50.0 |" in text
    assert text.endswith("Refused:\n- c + linear + square: its grid is odd")


@pytest.mark.slow
def test_a_tiny_study_tries_every_connector_and_is_not_done_again(study, tmp_path, capsys):
    arguments = ["--tiny", "--output", str(tmp_path), "--seeds", "0"]
    study.runs.main([*arguments, "--tilings", "grid,max_tiles=2", "--connectors", "linear"])
    arguments += ["--tilings", "square"]
    study.runs.main(arguments)
    report = json.loads((tmp_path / "tiny" / "parts_study.json").read_text())
    tried = len(report["rows"]) + len(report["refused"])
    assert tried == len(study.runs.connectors()) + 1
    assert {row["tiling"] for row in report["rows"]} == {"square", "grid,max_tiles=2"}
    assert {row["connector"] for row in report["rows"]} >= {"mlp2x_gelu", "linear"}
    assert all(set(row["scores"]) == set(study.runs.MATERIAL) for row in report["rows"])
    assert all(row["costs"]["image_tokens_per_picture"] > 0 for row in report["rows"])
    written = {file: file.stat().st_mtime_ns for file in tmp_path.glob("tiny/runs/*/*/result.json")}

    def rows():
        # Equal scores leave the order to that of the runs.
        return sorted(capsys.readouterr().out.rpartition("| encoder |")[2].splitlines())

    table = rows()
    study.runs.main(arguments)
    assert {file: file.stat().st_mtime_ns for file in written} == written
    assert table and rows() == table
    with pytest.raises(UserError, match=r"study\.json: its runs have overrides \[\], not \['optim\.lr=1e-3'\]"):
        study.runs.main([*arguments, "--set", "optim.lr=1e-3"])
