"""Which encoder, which connector, which tiling? A short training of each choice on the project's own pictures, and a table.

    python benchmarks/parts_study.py --tiny                  # seconds: tries every connector and tiling that there is
    python benchmarks/parts_study.py --encoders data_recipes/demo/clip openai/clip-vit-base-patch16 \\
        --connectors mlp2x_gelu mlp2x_gelu,shuffle=2 resampler,tokens=16 --tilings square grid,max_tiles=4

A part may have settings behind it, with commas between: those of `model.vision_encoder`, `model.projector` and
`model.image`. Without `--connectors` or `--tilings` all that are registered are taken. Every choice is trained from the same
parts on as many samples, once for each seed, which decides the new weights and which samples come when; the encoder stays
as it is, connector and language model learn. Then it is asked about pictures of things that training never shows. What a
combination can't do is named below the table.

A run that is done is skipped, one that was stopped goes on, and several shells may take seeds of their own (`--seeds 1`); the
table has all that is in the output by then. It is also in `parts_study.json`.
"""

import argparse
import json
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from measuring import machine
from parts_table import as_markdown, rows_of
from workloads import SHAPES, save_parts

import mllm
from data_recipes.sees_more.generate import generate
from data_recipes.sees_more.settings import GeneratorSettings, SceneCounts
from mllm import load_config
from mllm.commands.shared import add_overrides, configure_logging, run_command
from mllm.errors import UserError
from mllm.evaluation.benchmarks import metric_of
from mllm.evaluation.controls import questions_of
from mllm.evaluation.plan import plan_run
from mllm.evaluation.scoring import Outcome
from mllm.files import write_json_atomically
from mllm.finetune.run import finetune
from mllm.inference.request import prompt_of
from mllm.media.tilings import TILINGS
from mllm.model.projectors import PROJECTORS
from mllm.model.settings import ProjectorSettings
from mllm.processor import Processor

MATERIAL = {  # column: (benchmark, type of its questions)
    "shape": ("small_shape", "small_shape"),
    "colour": ("small_shape", "small_color"),
    "words": ("small_print", "small_print"),
    "counting": ("counted", "count"),
    "boxes": ("placed", "box"),
    "relations": ("related", "relation"),
}
SAMPLES_OF_A_SCENE = {"small_shape": 2}  # one of the others
BENCHMARKS = tuple(dict.fromkeys(name for name, _ in MATERIAL.values()))
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}


@dataclass(frozen=True)
class Part:
    """A name, such as a directory or a kind, and settings beside it."""

    name: str
    settings: dict[str, Any]
    label: str

    @classmethod
    def of(cls, text: str) -> "Part":
        """Read `NAME` or `NAME,key=value,…`; values are YAML. Raises UserError for what is neither."""
        name, *pairs = text.split(",")
        settings = {}
        for pair in pairs:
            key, separator, value = pair.partition("=")
            if not separator or not key:
                raise UserError(f"{text!r}: {pair!r} is no setting; write NAME,key=value, such as mlp2x_gelu,shuffle=2")
            settings[key] = yaml.safe_load(value)
        return cls(name, settings, text)


@dataclass(frozen=True)
class Choice:
    """An encoder, a connector and a tiling."""

    encoder: Part
    connector: Part
    tiling: Part

    @property
    def label(self) -> str:
        return f"{self.encoder.label} + {self.connector.label} + {self.tiling.label}"

    @property
    def folder(self) -> str:
        parts = (self.encoder.label, self.connector.label, self.tiling.label)
        return "--".join(re.sub(r"[^\w=.-]+", "_", part).strip("_") for part in parts)


def connectors() -> list[str]:
    """Every kind that is registered; the default stands for the family of its depths."""
    default = ProjectorSettings().kind
    return [default, *(name for name in PROJECTORS if name != re.sub(r"\d+x", "", default))]


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    configure_logging()
    if options.tiny:
        make_tiny(options)
    check_same_study(options)
    if not (options.output / "data" / "report.json").is_file():
        generate(material(options.output / "data", options.samples, options.questions))
    refused: dict[str, str] = {}
    for choice, seed in choices(options):
        place = options.output / "runs" / choice.folder / f"seed-{seed}"
        if not (place / "result.json").is_file() and choice.label not in refused:
            try:
                write_json_atomically(place / "result.json", run(choice, seed, place / "run", options))
            except UserError as error:
                refused[choice.label] = str(error)
            shutil.rmtree(place / "run", ignore_errors=True)
    results = [json.loads(file.read_text()) for file in sorted(options.output.glob("runs/*/*/result.json"))]
    if not results:
        raise UserError("no choice of parts could be run: " + "; ".join(dict.fromkeys(refused.values())))
    rows = rows_of(results)
    write_json_atomically(options.output / "parts_study.json", {"machine": machine(), "rows": rows, "refused": refused})
    print(machine())
    print(as_markdown(rows, results, refused))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", default=["data_recipes/demo/clip"], help="directories or hub ids")
    parser.add_argument("--connectors", nargs="+", default=connectors(), help="kinds of projectors")
    parser.add_argument("--tilings", nargs="+", default=list(TILINGS), help="names of tilings")
    parser.add_argument("--language-model", default="runs/demo/stage0/final", help="of the demo, after its stage 0")
    parser.add_argument("--output", type=Path, default=Path("runs/parts_study"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=3200, help="that each run is trained on")
    parser.add_argument("--batch", type=int, default=16, help="samples of a step")
    parser.add_argument("--questions", type=int, default=200, help="of each kind of material")
    parser.add_argument("--calibration", type=int, default=256, help="pictures that a new connector is calibrated on")
    parser.add_argument("--tiny", action="store_true", help="random tiny parts and a few samples, to try the script")
    add_overrides(parser)
    return parser.parse_args(arguments)


def make_tiny(options: argparse.Namespace) -> None:
    """Few samples, and parts of random weights, which are made once."""
    options.output /= "tiny"
    options.samples, options.batch, options.questions, options.calibration = 8, 4, 3, 4
    options.seeds = options.seeds[:2]
    parts = options.output / "parts"
    if not (parts / "lm").is_dir():
        text, vision = SHAPES["tiny"]
        save_parts(parts, text | TINY | {"num_key_value_heads": 2}, vision | TINY)
    options.encoders, options.language_model = [str(parts / "clip")], str(parts / "lm")


def check_same_study(options: argparse.Namespace) -> None:
    """Raise UserError where the output holds runs of another budget, which a table would mix with these."""
    names = ("language_model", "samples", "batch", "questions", "calibration", "overrides")
    own = {name: getattr(options, name) for name in names}
    path = options.output / "study.json"
    known = json.loads(path.read_text()) if path.is_file() else own
    other = next((name for name in names if known.get(name) != own[name]), None)
    if other is not None:
        raise UserError(
            f"{path}: its runs have {other} {known.get(other)}, not {own[other]}; give another --output, or the same"
        )
    write_json_atomically(path, own)


def material(output: Path, samples: int, questions: int) -> GeneratorSettings:
    """As many samples of each kind of scene, at least `samples` in all, and `questions` of each kind of question."""
    share = -(-samples // len(BENCHMARKS))
    trained = {name: -(-share // SAMPLES_OF_A_SCENE.get(name, 1)) for name in BENCHMARKS}
    return GeneratorSettings(
        output=str(output), trained=SceneCounts(**trained), asked=SceneCounts(**dict.fromkeys(BENCHMARKS, questions))
    )


def choices(options: argparse.Namespace) -> Iterator[tuple[Choice, int]]:
    """Each choice with each seed; a seed's runs come together, so that a table is whole as early as can be."""
    kinds = [[Part.of(text) for text in own] for own in (options.encoders, options.connectors, options.tilings)]
    for seed in options.seeds:
        for encoder, connector, tiling in product(*kinds):
            yield Choice(encoder, connector, tiling), seed


def run(choice: Choice, seed: int, run_dir: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train and ask one choice. Raises UserError for parts that don't fit together."""
    final = train(choice, seed, run_dir, options)
    steps = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    model, processor = mllm.load(final)
    data, started = options.output / "data", time.monotonic()
    seen = mllm.evaluate((model, processor), BENCHMARKS, data, conditions=("model",))
    asked_s = time.monotonic() - started
    blind = mllm.evaluate((model, processor), BENCHMARKS, data, conditions=("withheld",))
    costs = {
        "image_tokens_per_picture": image_tokens(processor, data),
        "tokens_per_sample": sum(step["tokens"] for step in steps) / sum(len(step["sample_ids"]) for step in steps),
        "connector_millions": sum(own.numel() for own in model.projector.parameters()) / 1e6,
        "training_s": sum(step["step_s"] for step in steps),
        "question_s": asked_s / sum(seen[name].count for name in BENCHMARKS),
    }
    named = {name: getattr(choice, name).label for name in ("encoder", "connector", "tiling")}
    return {**named, "seed": seed, "answers": answers_of(seen, blind), "costs": costs}


def train(choice: Choice, seed: int, run_dir: Path, options: argparse.Namespace) -> Path:
    """Train connector and language model; returns the directory of the model. A run that was stopped goes on."""
    data = options.output / "data"
    sources = [{"path": str(data / f"{name}.jsonl"), "image_root": str(data)} for name in BENCHMARKS]
    recipe, config = run_dir.parent / "recipe.yaml", run_dir.parent / "config.yaml"
    run_dir.mkdir(parents=True, exist_ok=True)
    recipe.write_text(yaml.safe_dump({"name": "parts-study", "sources": sources}), encoding="utf-8")
    projector = {"kind": choice.connector.name, "calibration_images": options.calibration}
    values = {
        "run_dir": str(run_dir),
        "seed": seed,
        "model": {
            "vision_encoder": {"path": choice.encoder.name} | choice.encoder.settings,
            "projector": projector | choice.connector.settings,
            "language_model": {"path": options.language_model},
            "image": {"tiling": choice.tiling.name} | choice.tiling.settings,
            "prompt_format": "chatml",
        },
        "trainable": {"language_model": "full", "token_embeddings": "frozen"},
        "data": {"recipe": str(recipe), "max_length_tokens": 4096, "packing": "samples"},
        "optim": {"lr": 1e-4, "lr_projector": 1e-3, "warmup_ratio": 0.05, "betas": [0.9, 0.98]},
        "train": {
            "max_steps": options.samples // options.batch,
            "global_batch_size": options.batch,
            "dtype": "auto",
            "trackers": [],
        },
        "engine": {"kind": "torch"},
    }
    config.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    final = finetune(load_config(str(config), options.overrides))
    assert final is not None
    return final


def answers_of(seen: Outcome, blind: Outcome) -> dict[str, dict[str, list[Any]]]:
    """Of each kind of material: the picture of each question, and whether it was answered rightly, by condition."""
    found = {}
    for column, (benchmark, kind) in MATERIAL.items():
        is_right = metric_of(benchmark).is_right
        own = [a for a in (*seen.answers[benchmark], *blind.answers[benchmark]) if a.type == kind]
        right = {
            # The commonest answer of training is told with both.
            name: {a.item_id: float(bool(is_right(a.score))) for a in own if a.condition == name}
            for name in ("model", "withheld", "majority")
        }
        groups = {a.item_id: a.group for a in own}
        found[column] = {"groups": list(groups.values())} | {n: [own[i] for i in groups] for n, own in right.items()}
    return found


def image_tokens(processor: Processor, data: Path) -> float:
    """How many image tokens a picture that is asked about has, on average."""
    counts: list[int] = []
    for chosen in plan_run(BENCHMARKS, data, None, 0, conditions=()):
        for question in questions_of(chosen.benchmark, chosen.items, "model", 0):
            counts += [length for _, length in prompt_of(question.request(), processor).tokens.image_spans]
    return mean(counts)


if __name__ == "__main__":
    run_command(main)
