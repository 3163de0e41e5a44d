"""Studies of the demo's CLIP with three seeds each; needs the demo's data (`mllm synth data_recipes/demo/synth.yaml`).

    python benchmarks/contrastive_studies.py train --steps 400   # from nothing, and on shuffled captions
    python benchmarks/contrastive_studies.py adapt               # few shots, base to new, prompts and styles

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
from mllm.contrastive.adapt.run import METHODS, accuracy
from mllm.contrastive.encode import CHUNK, DualEncoder, load_encoder
from mllm.contrastive.run import train_clip
from mllm.contrastive.zeroshot import ENSEMBLE
from mllm.images.decode import read_image

CONFIG = "train/configs/demo_clip.yaml"
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
# One shape after the other, so that base and new classes have every shape and colour in different pairs.
COLOURED = tuple(f"{colour} {SHAPES[(n + m) % 3]}" for m in range(3) for n, colour in enumerate(COLOURS))
DRAWINGS = ("animals", "computers", "faces", "food", "games", "people", "signs")
SHOTS = 16
STYLES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "as it is": lambda image: image,
    "grey": lambda image: ImageOps.grayscale(image).convert("RGB"),
    "inverted": ImageOps.invert,
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(image.width / 32)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["train", "adapt"])
    parser.add_argument("--root", type=Path, default=Path("runs/studies"))
    parser.add_argument("--model", default="data_recipes/demo/clip", help="what adapt adapts")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400, help="of training, 128 pairs each")
    options = parser.parse_args()
    configure_logging()
    (_train if options.study == "train" else _adapt)(options)
    print(f"\n{machine()}")


def _run_dir(root: Path, captions: str, seed: int) -> Path:
    return root / f"{captions}_{seed}"


def _train(options: argparse.Namespace) -> None:
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(options.seeds):
        for captions, share in (("true", 0.0), ("shuffled", 1.0)):
            run_dir = _run_dir(options.root, captions, seed)
            changes = [f"run_dir={run_dir}", f"seed={seed}", f"train.max_steps={options.steps}"]
            changes += [f"data.noise.mismatched={share}", "train.save_every_steps=null", "train.dtype=auto"]
            settings = load_settings(ContrastiveSettings, CONFIG, changes)
            if not (run_dir / "final").is_dir():
                train_clip(settings)
            figures = json.loads((run_dir / "final" / "training_log.json").read_text())["heldout"]
            encoder = load_encoder(run_dir)
            test = _labelled(encoder, settings.data.heldout, settings.data.image_root, COLOURED)
            figures["zero_shot"] = accuracy(ZeroShot(ENSEMBLE).fit(encoder, test, seed), test)
            found.setdefault(captions, []).append(figures)
            print(f"{captions} {seed}: {json.dumps(figures)}", flush=True)
    first = found["true"][0]
    columns = [name for name in first if "recall" in name and "chance" not in name] + ["zero_shot"]
    chance = {name: int(name.partition("@")[2]) / first["captions"] for name in columns[:-1] if "to_text" in name}
    chance |= {"zero_shot": 1 / len(COLOURED)}
    rows = [[name, *(_percent([f[column] for f in figures]) for column in columns)] for name, figures in found.items()]
    rows.append(["chance", *(f"{100 * chance[c]:.1f}" if c in chance else "" for c in columns)])
    print(markdown_table(["captions", *(column.replace("_", " ") for column in columns)], rows))


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
    shots: dict[str, list[float]] = {}
    split: dict[str, list[tuple[float, float]]] = {}
    changed: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    encoder = load_encoder(options.model)
    train, test = (_labelled(encoder, pairs, data.image_root, COLOURED) for pairs in (data.pairs, data.heldout))
    styled = {
        what: [_labelled(encoder, data.heldout, data.image_root, names, change) for change in STYLES.values()]
        for what, names in (("shapes", SHAPES), ("drawings", DRAWINGS))
    }
    for seed in range(options.seeds):
        for name, method in METHODS.items():
            fitted = method().fit(encoder, train.shots(SHOTS, seed), seed)
            shots.setdefault(name, []).append(accuracy(fitted, test))
            print(f"{SHOTS} shots, {name} {seed}: {shots[name][-1]:.4f}", flush=True)
        base, (test_base, test_new) = train.base_and_new()[0], test.base_and_new()
        for name in ("zero_shot", "coop", "cocoop", "clap"):
            fitted = METHODS[name]().fit(encoder, base.shots(SHOTS, seed), seed)
            split.setdefault(name, []).append((accuracy(fitted, test_base), accuracy(fitted, test_new)))
            print(f"base to new, {name} {seed}: {split[name][-1]}", flush=True)
        for what, tests in styled.items():
            for name, method in (("zero_shot", ZeroShot()), ("clap", Clap())):
                fitted = method.fit(encoder, tests[0], seed)  # both learn from the names alone
                changed.setdefault((what, name), []).append(_under_change(fitted, tests))
                print(f"{what}, {name} {seed}: {changed[what, name][-1]}", flush=True)
    print(markdown_table([f"{len(COLOURED)} classes", f"{SHOTS} shots"], [[n, _percent(v)] for n, v in shots.items()]))
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


if __name__ == "__main__":
    main()
