"""A model directory through `evaluate_directory`: our benchmarks, official ones and a user's file in one run."""

import json

from mllm.evaluation.run import evaluate_directory
from mllm.model.build import build
from mllm.model.checkpoint import save
from tests.evaluation.releases import write_mme
from tests.tiny import save_image, tiny_settings


def test_results_hold_the_official_numbers_of_every_condition(tiny_parts, tmp_path):
    save(tmp_path / "model", *build(tiny_settings(tiny_parts)))
    write_mme(tmp_path)
    own = tmp_path / "own.jsonl"
    save_image(tmp_path / "a.png")
    lines = [{"image": "a.png", "question": "What?", "answer": "a"}, {"question": "Why?", "answer": "b"}]
    # Another image, so that there is one to swap with.
    save_image(tmp_path / "b.png")
    lines.append({"image": "b.png", "question": "What?", "answer": "c"})
    own.write_text("\n".join(map(json.dumps, lines)))

    names = ["mme", str(own)]
    evaluate_directory(str(tmp_path / "model"), names, tmp_path, tmp_path / "out", limit=3, seed=0, batch_size=8)

    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(results["official"]["mme"]) == {"model", "withheld", "swapped"}
    assert {"perception", "cognition", "by_task"} <= results["official"]["mme"]["model"].keys()
    answers = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    pairs = [a["group"] for a in answers if a["benchmark"] == "mme" and a["condition"] == "model"]
    assert pairs and all(pairs.count(group) == 2 for group in pairs)  # three were asked for, pairs were completed
