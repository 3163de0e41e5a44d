"""Studies of a small CLIP; needs the demo's data (`python -m data_recipes.demo`).

    python benchmarks/contrastive_studies.py train            # from nothing, and on shuffled captions
    python benchmarks/contrastive_studies.py noise --seeds 1  # accuracy against noise of captions and number of pairs
    python benchmarks/contrastive_studies.py adapt            # few shots, base to new, prompts and styles
    python benchmarks/contrastive_studies.py shipped          # the CLIP that comes with the demo, by prompts

A seed of `train` is a CLIP; a seed of `adapt` is a draw of the shots for one of the CLIPs that it is given, in turn. Rows are
printed as they come, then tables.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from measuring import machine, markdown_table
from PIL import Image, ImageFilter, ImageOps

from mllm.commands.shared import configure_logging
from mllm.contrastive.run import train_clip
from mllm.contrastive.settings import ContrastiveSettings
from mllm.contrastive.zeroshot import DEFAULT_TEMPLATES, ENSEMBLE, class_features
from mllm.inference.dual_features import CHUNK, DualEncoder, load_encoder
from mllm.media.decode import read_image
from mllm.settings import load_settings
from mllm.studies.adapt.clap import Clap
from mllm.studies.adapt.classifier import ZeroShot
from mllm.studies.adapt.coop import CoCoOp, CoOp
from mllm.studies.adapt.problem import LabelledFeatures, labelled_files
from mllm.studies.adapt.run import METHODS, Method, accuracy

CONFIG = "train/configs/demo_clip.yaml"
# The demo's model on a quarter of its patches: a step takes half as long.
SMALLER = ("model.image_size_px=48", "model.patch_size_px=12")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
# One shape after the other, so that base and new classes have every shape and colour in different pairs.
COLOURED = tuple(f"{colour} {SHAPES[(n + m) % 3]}" for m in range(3) for n, colour in enumerate(COLOURS))
DRAWINGS = ("animals", "computers", "faces", "food", "games", "people", "signs")
SHIPPED = "data_recipes/demo/clip"
SHIPPED_PROMPTS = {"a photo of a {}.": DEFAULT_TEMPLATES, "eight prompts": ENSEMBLE, "a {}": ("a {}",), "{}": ("{}",)}
COUNTS = (1, 4, 16)
SHOTS = COUNTS[-1]
# Zero-shot in the form of the training captions: CLIP's own prompt, the default, is in none of them.
AS_CAPTIONED = "zero_shot, 'a {}'"
# CoOp as the CoCoOp paper compares with it: both start from the same words.
FROM_WORDS = "coop, from words"
# With the scale that CLAP's authors release for OfficeHome, in place of VLCS's.
STRONGER = "clap, scale 0.14"
ZERO_SHOTS = (AS_CAPTIONED, "zero_shot")
ONE_COUNT = (*ZERO_SHOTS, "clap", "cocoop", FROM_WORDS)  # the first three see no shots, the others are slow
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
CHANGES = ("worst prompt", "range", *STYLES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=sorted(STUDIES))
    parser.add_argument("--root", type=Path, default=Path("runs/studies"))
    trained = [f"runs/studies/true_{seed}" for seed in range(3)]
    parser.add_argument("--model", nargs="+", default=trained, help="what adapt adapts: one a seed, in turn (train's)")
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
        parts.append(encoder.raw_pixels_to_features(torch.stack(pixels)).detach())
    return LabelledFeatures(torch.cat(parts), torch.tensor(labels), tuple(names))


def _adapt(options: argparse.Namespace) -> None:
    """Every figure is a list with one entry a seed, so that methods can be compared seed by seed."""
    shots: dict[str, dict[int, list[float]]] = {}
    split: dict[str, list[tuple[float, float]]] = {}
    changed: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    for seed in range(options.seeds):
        path = options.model[seed % len(options.model)]
        encoder = load_encoder(path)
        print(f"seed {seed}: {path}", flush=True)
        _few_shots(encoder, seed, shots, split)
        _other_styles(encoder, seed, changed)
    rows = [[n, *(_percent(found[c]) if c in found else "" for c in COUNTS)] for n, found in shots.items()]
    print(markdown_table([f"{len(COLOURED)} classes", *(f"{count} shots" for count in COUNTS)], rows))
    rows = [[name, *map(_percent, zip(*values, strict=True))] for name, values in split.items()]
    print("\n" + markdown_table([f"{SHOTS} shots", "base", "new"], rows))
    rows = [[*key, *map(_percent, zip(*values, strict=True))] for key, values in changed.items()]
    print("\n" + markdown_table(["classes", "method", *CHANGES], rows))
    print("\n" + markdown_table(["difference, seed by seed", "points"], _differences(shots, split, changed)))


def _few_shots(
    encoder: DualEncoder, seed: int, shots: dict[str, dict[int, list[float]]], split: dict[str, list[Any]]
) -> None:
    data = load_settings(ContrastiveSettings, CONFIG, []).data
    train, test = (_labelled(encoder, pairs, data.image_root, COLOURED) for pairs in (data.pairs, data.heldout))
    from_words = {FROM_WORDS: lambda: CoOp(start=CoCoOp.start)}
    methods: dict[str, Callable[..., Method]] = {AS_CAPTIONED: lambda: ZeroShot(("a {}",)), **METHODS, **from_words}
    for name, method in methods.items():
        for count in (SHOTS,) if name in ONE_COUNT else COUNTS:
            fitted = method().fit(encoder, train.shots(count, seed), seed)
            shots.setdefault(name, {}).setdefault(count, []).append(accuracy(fitted, test))
            print(f"{count} shots, {name} {seed}: {shots[name][count][-1]:.4f}", flush=True)
    base, (test_base, test_new) = train.base_and_new()[0], test.base_and_new()
    for name in (AS_CAPTIONED, "zero_shot", "coop", FROM_WORDS, "cocoop", "clap"):
        fitted = methods[name]().fit(encoder, base.shots(SHOTS, seed), seed)
        split.setdefault(name, []).append((accuracy(fitted, test_base), accuracy(fitted, test_new)))
        print(f"base to new, {name} {seed}: {split[name][-1]}", flush=True)


def _other_styles(encoder: DualEncoder, seed: int, changed: dict[tuple[str, str], list[tuple[float, ...]]]) -> None:
    data = load_settings(ContrastiveSettings, CONFIG, []).data
    for what, names in (("shapes", SHAPES), ("drawings", DRAWINGS)):
        tests = [_labelled(encoder, data.heldout, data.image_root, names, change) for change in STYLES.values()]
        # Both learn from the names alone, so that the test's images are no training data.
        zero, clap = (method.fit(encoder, tests[0], seed) for method in (ZeroShot(), Clap()))
        for name, fitted in (("zero_shot", zero), ("clap", clap), (STRONGER, dataclasses.replace(clap, scale=0.14))):
            changed.setdefault((what, name), []).append(_under_change(fitted, tests))
            print(f"{what}, {name} {seed}: {changed[what, name][-1]}", flush=True)


def _under_change(fitted: Any, tests: Sequence[LabelledFeatures]) -> tuple[float, ...]:
    """CHANGES: over single prompts, the lowest accuracy on the images as they are and the highest less the lowest (R of
    the CLAP paper); then of each style, the mean over prompts."""
    prompts = [dataclasses.replace(fitted, templates=(template,)) for template in ENSEMBLE]
    found = [[accuracy(prompt, test) for prompt in prompts] for test in tests]
    return min(found[0]), max(found[0]) - min(found[0]), *(mean(values) for values in found)


def _differences(
    shots: dict[str, dict[int, list[float]]],
    split: dict[str, list[tuple[float, float]]],
    changed: dict[tuple[str, str], list[tuple[float, ...]]],
) -> list[list[str]]:
    pairs = {f"coop - {other}, {SHOTS} shots": (shots["coop"][SHOTS], shots[other][SHOTS]) for other in ZERO_SHOTS}
    new = {name: [value for _, value in values] for name, values in split.items()}
    pairs |= {f"cocoop - {other}, new classes": (new["cocoop"], new[other]) for other in ("coop", FROM_WORDS)}
    for what in ("shapes", "drawings"):
        for name in ("clap", STRONGER):
            clap, zero = (zip(*changed[what, n], strict=True) for n in (name, "zero_shot"))
            pairs |= {f"{name} - zero_shot, {what}, {c}": pair for c, *pair in zip(CHANGES, clap, zero, strict=True)}
    return [[name, _percent([a - b for a, b in zip(*pair, strict=True)])] for name, pair in pairs.items()]


def _shipped(options: argparse.Namespace) -> None:
    """Zero-shot accuracy of three sets of classes, and the greatest cosine of two of a set, in several prompts."""
    encoder, data = load_encoder(SHIPPED), load_settings(ContrastiveSettings, CONFIG).data
    rows = []
    for title, names in (("shapes", SHAPES), ("colours and shapes", COLOURED), ("drawings", DRAWINGS)):
        test = _labelled(encoder, str(data.heldout), data.image_root, names)
        images, labels = test.features, test.labels
        cells = []
        for templates in SHIPPED_PROMPTS.values():
            classes = class_features(encoder, names, templates)
            nearest = (classes @ classes.T - 2 * torch.eye(len(names))).max().item()
            right = ((images @ classes.T).argmax(1) == labels).float().mean().item()
            cells.append(f"{100 * right:.1f} ({nearest:.2f})")
        rows.append([title, len(labels), f"{100 / len(names):.1f}", *cells])
    print(markdown_table(["classes", "images", "chance", *SHIPPED_PROMPTS], rows))


STUDIES = {"train": _train, "noise": _noise, "adapt": _adapt, "shipped": _shipped}

if __name__ == "__main__":
    main()
