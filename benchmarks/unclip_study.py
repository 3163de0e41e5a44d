"""unCLIP and retrieval cues on easy-VQA's shapes: what a prior samples, and what is drawn from image embeddings.

    python benchmarks/unclip_study.py runs/demo/unclip_study --prior runs/demo/prior --decoder runs/demo/decoder \\
        --text-model runs/demo/diffusion --retrieval runs/demo/retrieval --index runs/demo/index

Every part is measured whose models are named; `--seeds` and `--per-prompt` say how often. Colours and shapes are judged by
the rule of `data_recipes/demo/flat_drawings.py`, whose accuracy on the held-out images is printed beside. Figures go to
`unclip_study.json` in the output directory, pictures to sheets beside it.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F

from data_recipes.demo.easyvqa import COLORS, SHAPES
from data_recipes.demo.flat_drawings import read_drawing
from mllm.commands.shared import HelpFormatter, run_command
from mllm.contrastive.data import Pair, read_pairs
from mllm.files import write_json_atomically
from mllm.generation.codec import from_pictures
from mllm.generation.embeddings import slerp
from mllm.generation.generator import Generator
from mllm.generation.inversion import psnr_db
from mllm.generation.opening import load_generator
from mllm.generation.pictures import draw_conditions, draw_pictures, save_sheet
from mllm.generation.prior_model import SAMPLING, Prior, load_prior
from mllm.generation.sampler import Sampling
from mllm.generation.unclip import drawn_from, edit, embed, inverted, mix, unclipped, vary
from mllm.generation.unclip_generators import Cued, Decoder, with_index, with_prior
from mllm.inference.dual_features import DualEncoder
from mllm.media.decode import read_image

BY = "benchmarks/unclip_study.py"
CLASSES = [(color, shape) for color in COLORS for shape in SHAPES]
PROMPTS = [f"a {color} {shape}" for color, shape in CLASSES]
THETAS = (0.0, 0.125, 0.25, 0.375, 0.5)
SHEET_COLUMNS = 12
MOST_DB = 60.0

Figures = dict[str, Any]


@dataclass(frozen=True)
class Real:
    """Real images by class: their files, and their unit embeddings [n, E]."""

    files: dict[tuple[str, str], list[Path]]
    unit: dict[tuple[str, str], torch.Tensor]

    @property
    def prototypes(self) -> torch.Tensor:
        """The mean direction of each class, [24, E]."""
        return F.normalize(torch.stack([self.unit[name].mean(0) for name in CLASSES]), dim=-1)


def real_of(pairs: Sequence[Pair], encoder: DualEncoder, limit: int) -> Real:
    """Take up to `limit` images of each class whose caption names colour and shape."""
    files: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for pair in pairs:
        words = pair.caption.split()
        if len(words) == 3 and (words[1], words[2]) in CLASSES:
            files[words[1], words[2]].append(pair.image)
    kept = {name: paths[:limit] for name, paths in files.items()}
    return Real(kept, {name: encoder.images(paths) for name, paths in kept.items()})


def shares(pictures: Sequence[Image.Image], wanted: Sequence[tuple[str, str]]) -> Figures:
    """Shares of pictures whose colour, shape and both are those wanted, by the rule."""
    seen = [read_drawing(picture) or ("", "") for picture in pictures]
    right = [(own[0] == asked[0], own[1] == asked[1]) for own, asked in zip(seen, wanted, strict=True)]
    count = len(right)
    return {
        "pictures": count,
        "color": sum(color for color, _ in right) / count,
        "shape": sum(shape for _, shape in right) / count,
        "both": sum(color and shape for color, shape in right) / count,
    }


def study_prior(prior: Prior, real: Real, heldout: Real, per_prompt: int, seed: int, guidance: float) -> Figures:
    """Class of what is sampled, its cosines beside those that say how much they mean, and its spread beside the real one."""
    how = replace(SAMPLING, guidance=guidance)
    prompts = [prompt for prompt in PROMPTS for _ in range(per_prompt)]
    seeds = [seed * 10_000 + number for number in range(len(prompts))]
    unit = prior.embeddings(prompts, seeds, how).unflatten(0, (len(PROMPTS), per_prompt))
    texts, prototypes = prior.sides.encoder.texts(PROMPTS), real.prototypes
    places = torch.arange(len(CLASSES))
    cosines: dict[str, list[float]] = defaultdict(list)
    spreads = []
    everything = F.normalize(prototypes.mean(0), dim=-1)
    for place, name in enumerate(CLASSES):
        truth = heldout.unit[name]
        own = unit[place][: len(truth)]
        cosines["prior"].append(float((own * truth[: len(own)]).sum(-1).mean()))
        cosines["another image of the class"].append(float((truth * truth.roll(1, 0)).sum(-1).mean()))
        cosines["mean of the class"].append(float((truth @ prototypes[place]).mean()))
        cosines["mean of all images"].append(float((truth @ everything).mean()))
        cosines["text embedding"].append(float((truth @ texts[place]).mean()))
        spreads.append(float(unit[place].var(0).sum() / real.unit[name].var(0).sum()))
    real_right = [(heldout.unit[name] @ prototypes.T).argmax(1) == place for place, name in enumerate(CLASSES)]
    return {
        "class_right": float(((unit @ prototypes.T).argmax(-1) == places[:, None]).float().mean()),
        "class_right_of_real": float(torch.cat(real_right).float().mean()),
        "spread": sum(spreads) / len(spreads),
        "spread_least_and_most": [min(spreads), max(spreads)],
        "cosine": {name: sum(values) / len(values) for name, values in cosines.items()},
    }


def drawn_by_class(generator: Generator, per_prompt: int, seed: int, how: Sampling) -> list[Image.Image]:
    """Draw each of the 24 prompts `per_prompt` times."""
    prompts = [prompt for prompt in PROMPTS for _ in range(per_prompt)]
    return draw_pictures(generator, prompts, [seed * 10_000 + number for number in range(len(prompts))], how)


def study_decoder(
    decoder: Decoder, text_model: Generator | None, heldout: Real, per_prompt: int, seed: int, how: Sampling, out: Path
) -> Figures:
    """Colours and shapes drawn by prior and decoder, beside the text model's and what else may stand for an embedding."""
    wanted = [name for name in CLASSES for _ in range(per_prompt)]
    prompts = [prompt for prompt in PROMPTS for _ in range(per_prompt)]
    seeds = [seed * 10_000 + number for number in range(len(prompts))]
    texts = decoder.sides.encoder.texts(prompts)
    real = torch.cat([heldout.unit[n][torch.arange(per_prompt) % len(heldout.unit[n])] for n in CLASSES])
    sheets, figures = {}, {}
    if decoder.prior is not None:
        sheets["prior + decoder"] = drawn_by_class(decoder, per_prompt, seed, how)
        embeddings = decoder.prior.embeddings(prompts, seeds)
        sheets["prior + decoder, no text"] = draw_conditions(decoder, decoder.embedded(embeddings), seeds, how)
    sheets["text embedding as image embedding"] = draw_conditions(decoder, decoder.embedded(texts), seeds, how)
    sheets["a real image's embedding"] = draw_conditions(decoder, decoder.embedded(real), seeds, how)
    if text_model is not None:
        sheets["text model"] = drawn_by_class(text_model, per_prompt, seed, how)
    for name, pictures in sheets.items():
        figures[name] = shares(pictures, wanted)
        shown, labels = pictures[::per_prompt], PROMPTS
        save_sheet(shown, labels, SHEET_COLUMNS, out / f"{name.replace(' ', '_')}_{seed}.png", BY)
    return figures


def study_variations(decoder: Decoder, heldout: Real, per_class: int, seed: int, how: Sampling, out: Path) -> Figures:
    """Whether variations keep colour and shape, and are more like their own image than like another's; and PSNR at η = 0."""
    rows: list[Image.Image] = []
    labels, wanted, varied, errors = [], [], [], []
    likeness: dict[str, list[float]] = defaultdict(list)
    units = {name: heldout.unit[name][:per_class] for name in CLASSES}
    for place, name in enumerate(CLASSES):
        for number, path in enumerate(heldout.files[name][:per_class]):
            image = read_image(path)
            made = vary(decoder, image, [seed * 10_000 + number], how)
            again = vary(decoder, image, [0], Sampling(steps=how.steps, guidance=1.0, eta=0.0))
            pixels = from_pictures([image, again[0]], decoder.codec.image_size_px)
            # Equal to the last of 255 levels is no infinity: nothing finer was compared.
            errors.append(min(MOST_DB, float(psnr_db(pixels[:1], pixels[1:], peak=2.0)[0])))
            own = embed(decoder, made)[0]
            other = units[CLASSES[(place + len(SHAPES) + 1) % len(CLASSES)]][0]
            likeness["own"].append(float(own @ units[name][number]))
            likeness["other"].append(float(own @ other))
            varied += made
            wanted.append(name)
            rows += [image, *made, again[0]] if number == 0 else []
            labels += [" ".join(name), "variation", "η 0"] if number == 0 else []
    save_sheet(rows, labels, SHEET_COLUMNS, out / f"variations_{seed}.png", BY)
    psnr = torch.tensor(errors)
    return {
        "variations": shares(varied, wanted),
        "clip_i": {name: sum(values) / len(values) for name, values in likeness.items()},
        "inversion_psnr_db": {"mean": float(psnr.mean()), "least": float(psnr.min())},
    }


def study_edits(decoder: Decoder, heldout: Real, per_class: int, seed: int, how: Sampling, out: Path) -> Figures:
    """Whether an edit changes the named attribute and keeps the other, at each share of the way; random directions beside."""
    generator = torch.Generator().manual_seed(seed)
    counts: dict[str, dict[float, list[tuple[bool, bool]]]] = defaultdict(lambda: defaultdict(list))
    rows, labels = [], []
    for place, (color, shape) in enumerate(CLASSES):
        other_color = COLORS[(COLORS.index(color) + 1 + seed) % len(COLORS)]
        other_shape = SHAPES[(SHAPES.index(shape) + 1 + seed) % len(SHAPES)]
        for path in heldout.files[color, shape][:per_class]:
            image = read_image(path)
            before = f"a {color} {shape}"
            made = {
                "color": edit(decoder, image, (before, f"a {other_color} {shape}"), THETAS, how),
                "shape": edit(decoder, image, (before, f"a {color} {other_shape}"), THETAS, how),
                "random direction": _turned_at_random(decoder, image, generator, how),
            }
            for what, pictures in made.items():
                for theta, picture in zip(THETAS, pictures, strict=True):
                    seen = read_drawing(picture) or ("", "")
                    new = other_shape if what == "shape" else other_color
                    changed, kept = (seen[1], seen[0]) if what == "shape" else seen
                    counts[what][theta].append((changed == new, kept == (color if what == "shape" else shape)))
        if place % 4 == 0:
            for what, target in (("color", other_color), ("shape", other_shape)):
                rows += [image, *made[what]]
                labels += [f"{color} {shape} → {target}", *(f"θ {theta}" for theta in THETAS)]
    save_sheet(rows, labels, 1 + len(THETAS), out / f"edits_{seed}.png", BY)
    return {
        what: {str(theta): _edit_shares(values) for theta, values in by_theta.items()}
        for what, by_theta in counts.items()
    }


def _edit_shares(values: Sequence[tuple[bool, bool]]) -> Figures:
    count = len(values)
    return {
        "changed": sum(changed for changed, _ in values) / count,
        "kept": sum(kept for _, kept in values) / count,
        "both": sum(changed and kept for changed, kept in values) / count,
    }


def _turned_at_random(
    decoder: Decoder, image: Image.Image, generator: torch.Generator, how: Sampling
) -> list[Image.Image]:
    """`edit`, but along a direction that no text names."""
    unit = embed(decoder, [image])
    direction = F.normalize(torch.randn(unit.shape, generator=generator), dim=-1)
    turned = torch.cat([slerp(unit, direction, theta) for theta in THETAS])
    start = inverted(decoder, [image], unit, how.steps)
    return drawn_from(unclipped(decoder), turned, start.expand(len(THETAS), -1, -1, -1), how, [0] * len(THETAS))


def study_retrieval(cued: Cued, other: Cued | None, per_prompt: int, seed: int, how: Sampling, out: Path) -> Figures:
    """Colours and shapes of pictures beside a prompt's neighbours, and which index they are more like when it is swapped."""
    wanted = [name for name in CLASSES for _ in range(per_prompt)]
    own = drawn_by_class(cued, per_prompt, seed, how)
    figures: Figures = {"k neighbours": shares(own, wanted)}
    figures["no neighbours"] = shares(drawn_by_class(cued, per_prompt, seed, replace(how, guidance=0.0)), wanted)
    save_sheet(own[::per_prompt], PROMPTS, SHEET_COLUMNS, out / f"retrieval_{seed}.png", BY)
    if other is not None:
        swapped = drawn_by_class(other, per_prompt, seed, how)
        save_sheet(swapped[::per_prompt], PROMPTS, SHEET_COLUMNS, out / f"retrieval_swapped_{seed}.png", BY)
        for name, pictures in (("own index", own), ("other index", swapped)):
            encoder = cued.sides.encoder
            unit = encoder.pixels_to_features(torch.stack([encoder.preparer(picture) for picture in pictures]))
            figures[f"clip_i, drawn beside the {name}"] = {
                f"to the {whose}": float((unit @ _mean_of(one)).mean())
                for whose, one in (("own index", cued), ("other index", other))
            }
    return figures


def _mean_of(cued: Cued) -> torch.Tensor:
    """The mean direction [E] of an index."""
    assert cued.neighbours is not None
    index = cued.neighbours.index
    return F.normalize(index.vectors(torch.arange(len(index.paths))).mean(0), dim=-1)


def study(options: argparse.Namespace) -> None:
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    figures: dict[str, dict[str, Figures]] = defaultdict(dict)
    how = Sampling(steps=options.steps, guidance=options.guidance)
    text_model = None if options.text_model is None else load_generator(options.text_model)
    decoder = None if options.decoder is None else load_generator(options.decoder)
    prior = None if options.prior is None else load_prior(options.prior)
    if decoder is not None and options.prior is not None:
        decoder = with_prior(decoder, options.prior)
    encoder = next((one.sides.encoder for one in (prior, decoder) if one is not None), None)
    if encoder is not None:
        real = real_of(read_pairs(options.pairs, options.image_root), encoder, options.real)
        heldout = real_of(read_pairs(options.heldout, options.image_root), encoder, options.real)
        files = [(path, name) for name in CLASSES for path in heldout.files[name]]
        figures["rule on real images"][""] = shares([read_image(p) for p, _ in files], [name for _, name in files])
    for seed in options.seeds:
        if prior is not None:
            for w in options.prior_guidance:
                figures[f"prior, w = {w}"][str(seed)] = study_prior(prior, real, heldout, options.per_prompt, seed, w)
        if isinstance(decoder, Decoder):
            drawn = study_decoder(decoder, text_model, heldout, options.per_prompt, seed, how, out)
            figures["decoder"][str(seed)] = drawn
            exact = Sampling(steps=options.inversion_steps, guidance=1.0)
            varied = replace(exact, eta=1.0, guidance=options.variation_guidance)
            figures["variations"][str(seed)] = study_variations(decoder, heldout, options.per_class, seed, varied, out)
            edits = replace(exact, guidance=options.edit_guidance)
            figures["edits"][str(seed)] = study_edits(decoder, heldout, options.per_class, seed, edits, out)
            _save_mixtures(decoder, heldout, exact, out, seed)
        if options.retrieval is not None:
            cued = with_index(load_generator(options.retrieval), options.index)
            other = None if options.other_index is None else with_index(cued, options.other_index)
            figures["retrieval"][str(seed)] = study_retrieval(cued, other, options.per_prompt, seed, how, out)
        write_json_atomically(out / "unclip_study.json", figures)
    print(json.dumps(figures, indent=2))


def _save_mixtures(decoder: Decoder, heldout: Real, how: Sampling, out: Path, seed: int) -> None:
    rows, labels = [], []
    between = [place / 6 for place in range(7)]
    for first, last in ((0, 4), (5, 9), (14, 20), (23, 1)):
        images = tuple(read_image(heldout.files[CLASSES[place]][seed]) for place in (first, last))
        for noise in (seed, None):
            rows += mix(decoder, (images[0], images[1]), between, how, noise)
            labels += [f"{share:.2f}" for share in between]
    save_sheet(rows, labels, len(between), out / f"mixtures_{seed}.png", BY)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("unclip_study", description=__doc__.splitlines()[0], formatter_class=HelpFormatter)
    parser.add_argument("out", type=Path, help="The directory to write figures and sheets to.")
    for name in ("prior", "decoder", "text-model", "retrieval", "index", "other-index"):
        parser.add_argument(f"--{name}", help=f"The {name.replace('-', ' ')}, a run or a directory.")
    parser.add_argument(
        "--pairs", default="runs/demo/data/clip_pairs.jsonl", help="Training pairs (default: %(default)s)."
    )
    parser.add_argument(
        "--heldout", default="runs/demo/data/heldout/clip_pairs.jsonl", help="Held-out pairs (default: %(default)s)."
    )
    parser.add_argument(
        "--image-root", default="runs/demo/data", help="Where image paths start (default: %(default)s)."
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="Seeds (default: 0 1 2).")
    parser.add_argument("--per-prompt", type=int, default=20, help="Pictures of a prompt (default: %(default)s).")
    parser.add_argument(
        "--per-class", type=int, default=4, help="Images of a class to vary and edit (default: %(default)s)."
    )
    parser.add_argument("--real", type=int, default=60, help="Real images of a class at most (default: %(default)s).")
    parser.add_argument("--steps", type=int, default=25, help="Steps of drawing (default: %(default)s).")
    parser.add_argument("--inversion-steps", type=int, default=50, help="Steps there and back (default: %(default)s).")
    parser.add_argument("--guidance", type=float, default=2.0, help="Guidance of drawing (default: %(default)s).")
    parser.add_argument("--variation-guidance", type=float, default=2.0, help="Of variations (default: %(default)s).")
    parser.add_argument("--edit-guidance", type=float, default=1.0, help="Guidance of edits (default: %(default)s).")
    parser.add_argument(
        "--prior-guidance", type=float, nargs="+", default=[1.0], help="Guidances of the prior (default: 1)."
    )
    study(parser.parse_args(arguments))


if __name__ == "__main__":
    run_command(main)
