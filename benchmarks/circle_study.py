"""Do pictures that a generator drew and a judge kept teach what real ones do? Stage 2 of the demo, with a part of its real
images of shapes left out, put back as kept pictures, and as pictures that nobody judged.

    make demo                                # the start and the data; then a generator: docs/how-to/judge_pictures.md
    mllm generate data runs/demo/diffusion runs/circle --questions questions.jsonl -n 40 \\
        --rule data_recipes/demo/flat_drawings.py:judge --least judge/both=1
    python benchmarks/circle_study.py --circle runs/circle --questions questions.jsonl

Every run trains what `demo_stage2.yaml` trains, at its rates, for as many steps of as many samples, on the demo's other
sources besides, and answers the same held-out questions. A seed decides which images are left out, which pictures come in
their place, and the order. What has been scored is kept; two shells with seeds of their own use two cores.
"""

import argparse
import json
import random
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from measuring import machine, markdown_table

from mllm import load_config
from mllm.commands.shared import configure_logging
from mllm.data.writers import record_of
from mllm.errors import UserError
from mllm.evaluation.plan import Setup
from mllm.evaluation.run import evaluate_subject
from mllm.evaluation.subjects.local import open_directory
from mllm.finetune.run import finetune
from mllm.generation.circle import samples_of
from mllm.generation.judging.drawing import whole_records
from mllm.generation.judging.drawn import PICTURES, Questions, read_questions

SHAPES = "easyvqa"  # the source of the demo's data whose images are replaced
ARMS = ("all_real", "fewer_real", "kept", "unfiltered")
COLUMNS = {
    "easy-VQA": ("easyvqa", "overall"),
    "– shape": ("easyvqa", "shape"),
    "– colour": ("easyvqa", "color"),
    "– yes/no": ("easyvqa", "yes_no"),
    "clip art": ("clipart", "overall"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="holds data/ and stage1/final")
    parser.add_argument("--circle", type=Path, default=Path("runs/circle"), help="what `mllm generate data` wrote")
    parser.add_argument("--questions", type=Path, default=Path("questions.jsonl"), help="those it was given")
    parser.add_argument("--output", type=Path, default=Path("runs/circle_study"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--left-out", type=float, default=0.5, help="share of the real images of shapes")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--samples", type=int, default=32, help="of a step")
    parser.add_argument("--asked", type=int, default=500, help="questions of each benchmark, if it has so many")
    options = parser.parse_args()
    configure_logging()
    study = options.output / f"{options.left_out:g}-{options.steps}x{options.samples}-{options.asked}"
    for seed in options.seeds:
        for arm in options.arms:
            scores = study / f"{arm}-{seed}"
            if not (scores / "results.json").is_file():
                run_dir = scores / "run"
                score(train(arm, seed, run_dir, options), scores, options)
                shutil.rmtree(run_dir)
    print(machine())
    print(table(study))


def train(arm: str, seed: int, run_dir: Path, options: argparse.Namespace) -> Path:
    """A stage 2 on the data of one arm; returns the directory of its model."""
    settings = load_config(
        "train/configs/demo_stage2.yaml",
        [
            *(f"run_dir={run_dir}", f"seed={seed}", f"model.init_from={options.demo / 'stage1' / 'final'}"),
            *(f"data.recipe={write_recipe(arm, seed, run_dir, options)}", f"train.max_steps={options.steps}"),
            *(f"train.global_batch_size={options.samples}", "engine.kind=torch"),
        ],
    )
    final = finetune(settings)
    assert final is not None
    return final


def write_recipe(arm: str, seed: int, run_dir: Path, options: argparse.Namespace) -> Path:
    """The recipe of an arm, whose samples are written beside it. Raises UserError where too few pictures were drawn."""
    data = options.demo / "data"
    real = [json.loads(line) for line in (data / "instruct.jsonl").read_text(encoding="utf-8").splitlines()]
    shapes = [record for record in real if record["source"] == SHAPES]
    stays, leaves = parted(shapes, options.left_out, seed)
    if arm == "all_real":
        stays, leaves = shapes, []
    run_dir.mkdir(parents=True, exist_ok=True)
    sources = [write(run_dir / "real.jsonl", [*(r for r in real if r["source"] != SHAPES), *stays], data)]
    if arm in ("kept", "unfiltered"):
        drawn = [record for record in whole_records(options.circle / PICTURES) if record["kept"] or arm == "unfiltered"]
        instead = in_place_of(leaves, drawn, read_questions(options.questions), seed)
        sources.append(write(run_dir / "drawn.jsonl", instead, options.circle))
    recipe = run_dir / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"name": f"circle-{arm}", "sources": sources}), encoding="utf-8")
    return recipe


def parted(shapes: Sequence[Mapping[str, Any]], left_out: float, seed: int) -> tuple[list[Any], list[Any]]:
    """The samples that stay and those that leave: a share of the images goes, with all its questions."""
    images = sorted({record["images"][0] for record in shapes})
    gone = set(random.Random(f"{seed}/left out").sample(images, round(left_out * len(images))))
    stays = [record for record in shapes if record["images"][0] not in gone]
    return stays, [record for record in shapes if record["images"][0] in gone]


def in_place_of(
    leaves: Sequence[Mapping[str, Any]], drawn: Sequence[Mapping[str, Any]], questions: Questions, seed: int
) -> list[dict[str, Any]]:
    """As many questions, about as many pictures, as leave: of each picture as many as the image had that it stands for."""
    counts: dict[str, int] = defaultdict(int)
    for record in leaves:
        counts[record["images"][0]] += 1
    if len(drawn) < len(counts):
        raise UserError(f"{len(counts)} images are left out and {len(drawn)} pictures there: draw more (-n)")
    rng = random.Random(f"{seed}/in place")
    records = []
    for record, count in zip(rng.sample(list(drawn), len(counts)), counts.values(), strict=True):
        about = [sample for sample in samples_of([record], questions, "drawn", "drawn") if sample.kind != "caption"]
        records += [record_of(sample) for sample in rng.sample(about, min(count, len(about)))]
    return records


def write(path: Path, records: Iterable[Mapping[str, Any]], image_root: Path) -> dict[str, str]:
    """Write samples; returns the recipe's source of them."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return {"path": str(path), "image_root": str(image_root)}


def score(model: Path, output: Path, options: argparse.Namespace) -> None:
    """Which questions are asked doesn't follow the seed of the training."""
    benchmarks = list(dict.fromkeys(name for name, _ in COLUMNS.values()))
    setup = Setup(benchmarks, options.demo / "data", output, options.asked, conditions=("model",))
    evaluate_subject(setup, lambda: open_directory(str(model), "float32", 32))


def table(study: Path) -> str:
    """Percent right of every arm, and the points that it gains on fewer real images with the same seed: mean and range."""
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for file in sorted(study.glob("*/results.json")):
        arm, _, seed = file.parent.name.rpartition("-")
        found[arm][seed] = json.loads(file.read_text(encoding="utf-8"))["scores"]
    rows = []
    for arm in (arm for arm in ARMS if arm in found):
        runs = found[arm]
        rows.append([arm, len(runs), *(span([share(run, c) for run in runs.values()]) for c in COLUMNS.values())])
        paired = [seed for seed in runs if seed in found["fewer_real"]] if arm != "fewer_real" else []
        if paired:
            base = found["fewer_real"]
            gains = ([share(runs[s], c) - share(base[s], c) for s in paired] for c in COLUMNS.values())
            rows.append(["– gained", len(paired), *map(span, gains)])
    return markdown_table(["trained on", "seeds", *COLUMNS], rows)


def share(scores: Mapping[str, Sequence[Mapping[str, Any]]], column: tuple[str, str]) -> float:
    """Percent right of a benchmark's questions of a type."""
    benchmark, kind = column
    entries = (e for e in scores[benchmark] if (e["condition"], e["type"]) == ("model", kind))
    return 100 * float(next(entries)["score"])


def span(values: Sequence[float]) -> str:
    return f"{mean(values):.1f}" + (f" ({min(values):.1f}–{max(values):.1f})" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
