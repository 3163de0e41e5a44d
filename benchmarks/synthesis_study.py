"""Do instructions made from captioned images teach more than the captions? Stage 2 of the demo on either, from one start.

    make demo                                # or what it does up to stage 1: the start and the data
    python benchmarks/synthesis_study.py     # minutes a run; what has been scored is kept, and not done again

Every run trains what `demo_stage2.yaml` trains, at its rates, for as many steps of as many samples, and answers the same
held-out questions. A seed decides which samples are seen and in which order. Two shells with seeds of their own
(`--seeds 0 1`, `--seeds 2`) use two cores; the table has all that is in the output by then. Seed 0 scores the start too.
"""

import argparse
import json
import shutil
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from measuring import machine, markdown_table

from mllm import load_config
from mllm.commands.shared import configure_logging
from mllm.evaluation.plan import Setup
from mllm.evaluation.run import evaluate_subject
from mllm.evaluation.subjects.local import open_directory
from mllm.finetune.run import finetune

# easy-VQA brings questions of its own, of which the demo's synthesis takes some; the others are written by the template.
SOURCES: dict[str, dict[str, Any]] = {
    "captions": {"path": "captions.jsonl"},
    "instructions": {"path": "instruct.jsonl"},
    "template_only": {"path": "instruct.jsonl", "origins": ["clipart", "emoji", "words"]},
}
COLUMNS = {
    "easy-VQA": ("easyvqa", "overall"),
    "– shape": ("easyvqa", "shape"),
    "– colour": ("easyvqa", "color"),
    "– yes/no": ("easyvqa", "yes_no"),
    "clip art": ("clipart", "overall"),
    "words": ("ocr_words", "overall"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="holds data/ and stage1/final")
    parser.add_argument("--output", type=Path, default=Path("runs/synthesis_study"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sources", nargs="+", choices=list(SOURCES), default=list(SOURCES))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--samples", type=int, default=24, help="of a step")
    parser.add_argument("--questions", type=int, default=250, help="of each benchmark, if it has so many")
    options = parser.parse_args()
    configure_logging()
    study = options.output / f"{options.steps}x{options.samples}-{options.questions}"
    if 0 in options.seeds and not (study / "start-0" / "results.json").is_file():
        score(options.demo / "stage1" / "final", study / "start-0", options)
    for seed in options.seeds:
        for name in options.sources:
            scores = study / f"{name}-{seed}"
            if not (scores / "results.json").is_file():
                run_dir = scores / "run"
                score(train(name, seed, run_dir, options), scores, options)
                shutil.rmtree(run_dir)
    print(machine())
    print(table(study))


def train(name: str, seed: int, run_dir: Path, options: argparse.Namespace) -> Path:
    """A short stage 2 on one source; returns the directory of its model."""
    data = options.demo / "data"
    source = SOURCES[name] | {"path": str(data / SOURCES[name]["path"]), "image_root": str(data)}
    recipe = run_dir / "recipe.yaml"
    run_dir.mkdir(parents=True, exist_ok=True)
    recipe.write_text(yaml.safe_dump({"name": "synthesis-study", "sources": [source]}), encoding="utf-8")
    settings = load_config(
        "train/configs/demo_stage2.yaml",
        [
            *(f"run_dir={run_dir}", f"seed={seed}", f"model.init_from={options.demo / 'stage1' / 'final'}"),
            *(f"data.recipe={recipe}", f"train.max_steps={options.steps}", "engine.kind=torch"),
            f"train.global_batch_size={options.samples}",
        ],
    )
    final = finetune(settings)
    assert final is not None
    return final


def score(model: Path, output: Path, options: argparse.Namespace) -> None:
    """Which questions are asked doesn't follow the seed of the training."""
    benchmarks = list(dict.fromkeys(name for name, _ in COLUMNS.values()))
    setup = Setup(benchmarks, options.demo / "data", output, options.questions, conditions=("model",))
    evaluate_subject(setup, lambda: open_directory(str(model), "float32", 32))


def table(study: Path) -> str:
    """Mean and range over seeds, in percent, of every kind of run that has been scored."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(study.glob("*/results.json")):
        found.setdefault(file.parent.name.rpartition("-")[0], []).append(json.loads(file.read_text())["scores"])
    order = [name for name in ("start", *SOURCES) if name in found]
    rows = [[name, len(found[name]), *(cell(found[name], c, "model") for c in COLUMNS.values())] for name in order]
    first = found[order[0]][:1]
    rows.append(["majority answer", "", *(cell(first, c, "majority") for c in COLUMNS.values())])
    asked = {(name, entry["type"]): entry["count"] for name, entries in first[0].items() for entry in entries}
    rows.append(["questions", "", *(asked[c] for c in COLUMNS.values())])
    return markdown_table(["trained on", "seeds", *COLUMNS], rows)


def cell(runs: list[dict[str, Any]], column: tuple[str, str], condition: str) -> str:
    benchmark, kind = column
    values = [
        100 * entry["score"]
        for scores in runs
        for entry in scores[benchmark]
        if (entry["condition"], entry["type"]) == (condition, kind)
    ]
    span = f" ({min(values):.1f}–{max(values):.1f})" if len(values) > 1 else ""
    return f"{mean(values):.1f}{span}" if values else ""


if __name__ == "__main__":
    main()
