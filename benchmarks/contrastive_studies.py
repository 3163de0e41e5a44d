"""Studies of a small CLIP; needs the demo's data (`mllm synth data_recipes/demo/synth.yaml`).

    python benchmarks/contrastive_studies.py train            # from nothing, and on shuffled captions
    python benchmarks/contrastive_studies.py noise --seeds 1  # accuracy against noise of captions and number of pairs
    python benchmarks/contrastive_studies.py adapt            # few shots, base to new, prompts and styles

A seed of `train` is a CLIP, a seed of `adapt` a draw of the shots for one CLIP. Rows are printed as they come, then tables.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from common import machine, markdown_table
from PIL import Image, ImageFilter, ImageOps

from mllm.command import configure_logging
from mllm.config import ContrastiveSettings, load_settings
from mllm.contrastive.adapt.baselines import ZeroShot
from mllm.contrastive.adapt.clap import Clap
from mllm.contrastive.adapt.problem import LabelledFeatures, labelled_files
from mllm.contrastive.adapt.run import METHODS, Method, accuracy
from mllm.contrastive.encode import CHUNK, DualEncoder, load_encoder
from mllm.contrastive.run import train_clip
from mllm.contrastive.zeroshot import ENSEMBLE
from mllm.images.decode import read_image

CONFIG = "train/configs/demo_clip.yaml"
# The demo's model on a quarter of its patches: a step takes half as long.
SMALLER = ("model.image_size_px=48", "model.patch_size_px=12")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
# One shape after the other, so that base and new classes have every shape and colour in different pairs.
COLOURED = tuple(f"{colour} {SHAPES[(n + m) % 3]}" for m in range(3) for n, colour in enumerate(COLOURS))
DRAWINGS = ("animals", "computers", "faces", "food", "games", "people", "signs")
COUNTS = (1, 4, 16)
SHOTS = COUNTS[-1]
# Zero-shot in the form of the training captions: CLIP's own prompt, the default, is in none of them.
AS_CAPTIONED = "zero_shot, 'a {}'"
ONE_COUNT = (AS_CAPTIONED, "zero_shot", "clap", "cocoop")  # three see no shots; the last is slow
KINDS = ("mismatched", "truncated", "boilerplate")
RATES, ALONE = (0.0, 0.3, 0.6), 0.4
FIGURES = {
    "image → text R@1": "image_to_text_recall@1",
    "R@5": "image_to_text_recall@5",
    "text → image R@1": "text_to_image_recall@1",
    "R@5 ": "text_to_image_recall@5",
    "zero-shot": "zero_shot",
}
STYLES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "as it is": lambda image: image,
    "grey": lambda image: ImageOps.grayscale(image).convert("RGB"),
    "inverted": ImageOps.invert,
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(image.width / 32)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=sorted(STUDIES))
    parser.add_argument("--root", type=Path, default=Path("runs/studies"))
    parser.add_argument("--model", default="runs/studies/true_1", help="what adapt adapts: one of train's")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--part-pairs", type=int, default=5000, help="the smaller data of noise")
    parser.add_argument("--steps", type=int, default=400, help="of training, 128 pairs each")
    options = parser.parse_args()
    configure_logging()
    STUDIES[options.study](options)
    print(f"\n{machine()}")


def _train(options: argparse.Namespace) -> None:
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(options.seeds):
        for captions, changes in (("true", []), ("shuffled", ["data.noise.mismatched=1"])):
            found.setdefault(captions, []).append(_clip(options, captions, seed, changes))
    rows = [[name, *_columns(figures)] for name, figures in found.items()]
    rows.append(["chance", *_chance(found["true"][0])])
    print(markdown_table(["captions", *FIGURES], rows))


def _noise(options: argparse.Namespace) -> None:
    """Rates of all three kinds together on two sizes of data, then each kind alone on all data."""
    clean, part = "true", options.part_pairs
    grid: list[tuple[str, str, float, int | None]] = [
        ("all three" if rate else "none", f"{'part' if pairs else 'all'}_{rate}", rate, pairs)
        for pairs in (None, part)
        for rate in RATES
    ]
    rows = []
    for what, name, rate, pairs in grid:
        changes = [f"data.noise.{kind}={rate / len(KINDS)}" for kind in KINDS]
        changes += [f"data.max_pairs={pairs}"] if pairs else []
        figures = [_clip(options, name if rate or pairs else clean, seed, changes) for seed in range(options.seeds)]
        rows.append([what, f"{rate:.0%}", pairs or "all", *_columns(figures)])
    for kind in KINDS:
        changes = [f"data.noise.{kind}={ALONE}"]
        figures = [_clip(options, f"{kind}_{ALONE}", seed, changes) for seed in range(options.seeds)]
        rows.append([kind, f"{ALONE:.0%}", "all", *_columns(figures)])
    print(markdown_table(["noise", "captions spoilt", "pairs", *FIGURES], rows))


def _clip(options: argparse.Namespace, name: str, seed: int, changes: Sequence[str]) -> dict[str, float]:
    """Held-out figures of a CLIP trained from nothing; one that is there already isn't trained again."""
    run_dir = options.root / f"{name}_{seed}"
    always = [f"run_dir={run_dir}", f"seed={seed}", f"train.max_steps={options.steps}", "train.save_every_steps=null"]
    settings = load_settings(ContrastiveSettings, CONFIG, [*SMALLER, *always, *changes])
    if not (run_dir / "final").is_dir():
        train_clip(settings)
    figures = json.loads((run_dir / "final" / "training_log.json").read_text())["heldout"]
    encoder = load_encoder(run_dir)
    test = _labelled(encoder, settings.data.heldout, settings.data.image_root, COLOURED)
    figures["zero_shot"] = accuracy(ZeroShot(ENSEMBLE).fit(encoder, test, seed), test)
    print(f"{name} {seed}: {json.dumps(figures)}", flush=True)
    return figures


def _columns(figures: Sequence[dict[str, float]]) -> list[str]:
    return [_percent([f[key] for f in figures]) for key in FIGURES.values()]


def _chance(figures: dict[str, float]) -> list[str]:
    return [
        f"{100 / len(COLOURED):.1f}" if key == "zero_shot" else f"{100 * int(key[-1]) / figures[among]:.1f}"
        for key, among in zip(FIGURES.values(), ("captions", "captions", "images", "images", ""), strict=True)
    ]


def _percent(values: Sequence[float]) -> str:
    return f"{100 * mean(values):.1f}" + (f" ± {100 * stdev(values):.1f}" if len(values) > 1 else "")


def _labelled(
    encoder: DualEncoder,
    pairs: str,
    root: str,
    names: Sequence[str],
    change: Callable[[Image.Image], Image.Image] = STYLES["as it is"],
) -> LabelledFeatures:
    files, labels = labelled_files(pairs, root, names)
    parts = []
    for start in range(0, len(files), CHUNK):
        pixels = [encoder.preparer(change(read_image(path))) for path in files[start : start + CHUNK]]
        parts.append(encoder.pixels_to_features(torch.stack(pixels)))
    return LabelledFeatures(torch.cat(parts), torch.tensor(labels), tuple(names))


def _adapt(options: argparse.Namespace) -> None:
    data = load_settings(ContrastiveSettings, CONFIG, []).data
    shots: dict[tuple[str, int], list[float]] = {}
    split: dict[str, list[tuple[float, float]]] = {}
    changed: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    encoder = load_encoder(options.model)
    train, test = (_labelled(encoder, pairs, data.image_root, COLOURED) for pairs in (data.pairs, data.heldout))
    styled = {
        what: [_labelled(encoder, data.heldout, data.image_root, names, change) for change in STYLES.values()]
        for what, names in (("shapes", SHAPES), ("drawings", DRAWINGS))
    }
    methods: dict[str, Callable[..., Method]] = {AS_CAPTIONED: lambda: ZeroShot(("a {}",)), **METHODS}
    for seed in range(options.seeds):
        for name, method in methods.items():
            for count in (SHOTS,) if name in ONE_COUNT else COUNTS:
                fitted = method().fit(encoder, train.shots(count, seed), seed)
                shots.setdefault((name, count), []).append(accuracy(fitted, test))
                print(f"{count} shots, {name} {seed}: {shots[name, count][-1]:.4f}", flush=True)
        base, (test_base, test_new) = train.base_and_new()[0], test.base_and_new()
        for name in (AS_CAPTIONED, "zero_shot", "coop", "cocoop", "clap"):
            fitted = methods[name]().fit(encoder, base.shots(SHOTS, seed), seed)
            split.setdefault(name, []).append((accuracy(fitted, test_base), accuracy(fitted, test_new)))
            print(f"base to new, {name} {seed}: {split[name][-1]}", flush=True)
        for what, tests in styled.items():
            for name, method in (("zero_shot", ZeroShot()), ("clap", Clap())):
                fitted = method.fit(encoder, tests[0], seed)  # both learn from the names alone
                changed.setdefault((what, name), []).append(_under_change(fitted, tests))
                print(f"{what}, {name} {seed}: {changed[what, name][-1]}", flush=True)
    rows = [[n, *(_percent(shots[n, c]) if (n, c) in shots else "" for c in COUNTS)] for n in methods]
    print(markdown_table([f"{len(COLOURED)} classes", *(f"{count} shots" for count in COUNTS)], rows))
    rows = [[name, *map(_percent, zip(*values, strict=True))] for name, values in split.items()]
    print("\n" + markdown_table([f"{SHOTS} shots", "base", "new"], rows))
    rows = [[*key, *map(_percent, zip(*values, strict=True))] for key, values in changed.items()]
    header = ["classes", "method", "worst prompt", *STYLES]
    print("\n" + markdown_table(header, rows))


def _under_change(fitted: Any, tests: Sequence[LabelledFeatures]) -> tuple[float, ...]:
    """The lowest accuracy over single prompts on the images as they are; then of each style, the mean over prompts."""
    prompts = [dataclasses.replace(fitted, templates=(template,)) for template in ENSEMBLE]
    found = [[accuracy(prompt, test) for prompt in prompts] for test in tests]
    return min(found[0]), *(mean(values) for values in found)


STUDIES = {"train": _train, "noise": _noise, "adapt": _adapt}

if __name__ == "__main__":
    main()
