"""The commands `mllm clip …`: arguments, and one call each."""

import argparse
from pathlib import Path
from typing import Any

from mllm.commands.adapt import EXAMPLE, add_adapt_arguments, run_adapt
from mllm.commands.shared import subparser
from mllm.settings import expanded, expanded_path

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def add_clip_commands(commands: Any) -> None:
    """The subcommands of `mllm clip`; each parser's default `run` does the work."""
    clip = commands.add_parser("clip", help="classify, retrieve, search and study with a CLIP or SigLIP")
    parts = clip.add_subparsers(dest="clip_command", required=True)

    classify = subparser(
        parts, "classify", _classify, "name images, without training",
        "mllm clip classify data_recipes/demo/clip data_recipes/demo/samples/shape.png --classes 'a circle,a rectangle'",
    )  # fmt: skip
    classify.add_argument("model", type=expanded, help="a directory of a CLIPModel or SiglipModel, or a run's")
    classify.add_argument("images", type=expanded, nargs="+", metavar="IMAGE")
    _add_classes(classify)
    classify.add_argument("-k", type=int, default=3, help="name the k likeliest (default 3)")

    retrieve = subparser(
        parts, "retrieve", _retrieve, "the images of a folder that are nearest to a text or an image",
        "mllm clip retrieve data_recipes/demo/clip runs/demo/data/images --text 'a dog' --sheet dogs.png",
    )  # fmt: skip
    retrieve.add_argument("model", type=expanded)
    retrieve.add_argument("folder", type=expanded)
    _add_query(retrieve)

    evaluate = subparser(
        parts, "eval", _evaluate, "recall@k of pairs both ways, or zero-shot accuracy of a folder of class folders",
        "mllm clip eval runs/demo/clip --pairs runs/demo/data/heldout/clip_pairs.jsonl --image-root runs/demo/data\n"
        "  mllm clip eval runs/demo/clip --folder pets --ensemble",
    )  # fmt: skip
    evaluate.add_argument("model", type=expanded)
    what = evaluate.add_mutually_exclusive_group(required=True)
    what.add_argument("--pairs", type=expanded, metavar="FILE", help='JSON lines {"image": …, "caption": …}')
    what.add_argument("--folder", type=expanded, help="its folders are classes")
    evaluate.add_argument("--image-root", type=expanded, default=".", help="where the paths of --pairs start from")
    evaluate.add_argument("-k", type=int, nargs="+", default=[1, 5, 10])
    _add_templates(evaluate)
    _add_fit(evaluate)

    index = subparser(
        parts, "index", _index, "make a FAISS index of a folder's images",
        "mllm clip index data_recipes/demo/clip runs/demo/data/images runs/demo/index",
    )  # fmt: skip
    index.add_argument("model", type=expanded)
    index.add_argument("folder", type=expanded)
    index.add_argument("out", type=expanded)
    _add_fit(index)

    search = subparser(
        parts, "search", _search, "search an index by text or by image",
        "mllm clip search runs/demo/index --text 'a red fruit' --sheet fruit.png",
    )  # fmt: skip
    search.add_argument("index", type=expanded)
    _add_query(search, fit=False)

    adapt = subparser(parts, "adapt", run_adapt, "learn a few labelled images on frozen, cached features", EXAMPLE)
    add_adapt_arguments(adapt)

    diagnosis = subparser(
        parts, "diagnose", _diagnose, "alignment, uniformity and modality gap of a model on pairs, with a picture",
        "mllm clip diagnose data_recipes/demo/clip runs/demo/data/heldout/clip_pairs.jsonl --image-root runs/demo/data "
        "--picture space.png",
    )  # fmt: skip
    diagnosis.add_argument("model", type=expanded)
    diagnosis.add_argument("pairs", type=expanded, help='JSON lines {"image": …, "caption": …}')
    diagnosis.add_argument("--image-root", type=expanded, default=".")
    diagnosis.add_argument(
        "--folder", type=expanded, help="class folders: measure also how much hangs on the choice of a prompt"
    )
    diagnosis.add_argument("--picture", type=_picture, metavar="OUT.png")
    _add_fit(diagnosis)

    simulation = subparser(
        parts, "misalignment", _misalignment, "simulate which latent factors survive omitted and altered semantics",
        "mllm clip misalignment runs/misalignment --omitted 3 --perturbed 3",
    )  # fmt: skip
    simulation.add_argument("out", type=expanded, help="a directory for table.json and picture.png")
    simulation.add_argument("--omitted", type=int, default=3, help="semantic factors that no text mentions (default 3)")
    simulation.add_argument("--perturbed", type=int, default=3, help="factors that texts often get wrong (default 3)")
    simulation.add_argument("--steps", type=int, default=3000)
    simulation.add_argument("--seeds", type=int, default=3)


def _add_fit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fit", choices=["pad", "crop", "stretch"], help="how images become square (as trained)")


def _add_templates(parser: argparse.ArgumentParser) -> None:
    templates = parser.add_mutually_exclusive_group()
    templates.add_argument("--template", action="append", default=[], help="with {} for the name; more are an ensemble")
    templates.add_argument("--templates", type=expanded, metavar="FILE", help="a template a line")
    templates.add_argument("--ensemble", action="store_true", help="average over eight templates")


def _add_classes(parser: argparse.ArgumentParser) -> None:
    classes = parser.add_mutually_exclusive_group(required=True)
    classes.add_argument("--classes", help="names, with commas between")
    classes.add_argument("--class-file", type=expanded, metavar="FILE", help="a name a line")
    _add_templates(parser)
    _add_fit(parser)


def _add_query(parser: argparse.ArgumentParser, fit: bool = True) -> None:
    query = parser.add_mutually_exclusive_group(required=True)
    query.add_argument("--text")
    query.add_argument("--image", type=expanded, metavar="FILE")
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--sheet", type=_picture, metavar="OUT.png", help="draw what was found")
    if fit:
        _add_fit(parser)


def _picture(text: str) -> Path:
    """Of a picture to write. Raises ArgumentTypeError, of which argparse makes a line, for a kind that isn't drawn."""
    path = expanded_path(text)
    if path.suffix.lower() not in PICTURES:
        raise argparse.ArgumentTypeError(f"{text!r}: pictures are written as {', '.join(PICTURES)}")
    return path


def _check_picture(path: Path | None, by: str, *inputs: str) -> None:
    from mllm.outputs import check_file

    if path is not None:
        check_file(path, by, inputs)


def _by(options: argparse.Namespace) -> str:
    return f"mllm clip {options.clip_command}"


def _check_k(k: int) -> None:
    from mllm.errors import UserError

    if k < 1:
        raise UserError(f"-k {k}: give at least 1")


def _templates(options: argparse.Namespace) -> list[str]:
    from mllm.contrastive.zeroshot import DEFAULT_TEMPLATES, ENSEMBLE, read_lines

    if options.templates:
        return read_lines(options.templates, "template")
    return options.template or list(ENSEMBLE if options.ensemble else DEFAULT_TEMPLATES)


def _classify(options: argparse.Namespace) -> None:
    from mllm.contrastive.zeroshot import class_features, read_lines
    from mllm.inference.dual_features import load_encoder

    _check_k(options.k)
    names = read_lines(options.class_file, "class") if options.class_file else _split(options.classes)
    encoder = load_encoder(options.model, options.fit)
    classes = class_features(encoder, names, _templates(options))
    probabilities = encoder.probabilities(encoder.images(options.images) @ classes.T)
    for path, row in zip(options.images, probabilities, strict=True):
        top = row.topk(min(options.k, len(names)))
        named = (f"{names[i]} {p:.1%}" for p, i in zip(top.values.tolist(), top.indices.tolist(), strict=True))
        print(f"{path}: {', '.join(named)}")


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _retrieve(options: argparse.Namespace) -> None:
    from mllm.contrastive.index import nearest
    from mllm.inference.dual_features import image_files, load_encoder

    _check_k(options.k)
    _check_picture(options.sheet, _by(options))
    files = image_files(options.folder)
    encoder = load_encoder(options.model, options.fit)
    _show(options, nearest(encoder.images(files), files, _query(encoder, options), options.k))


def _query(encoder: Any, options: argparse.Namespace) -> Any:
    return (encoder.images([options.image]) if options.image else encoder.texts([options.text]))[0]


def _show(options: argparse.Namespace, hits: list[Any]) -> None:
    for hit in hits:
        print(f"{hit.score:.4f}  {hit.path}")
    if options.sheet:
        from mllm.contrastive.index import save_sheet

        save_sheet(hits, options.text or options.image, options.sheet, _by(options))
        print(f"saved {options.sheet}")


def _evaluate(options: argparse.Namespace) -> None:
    import json

    import torch

    from mllm.contrastive.data import read_pairs
    from mllm.contrastive.retrieval import recall
    from mllm.contrastive.zeroshot import class_features, class_folders, top_k_accuracy
    from mllm.inference.dual_features import load_encoder

    for k in options.k:
        _check_k(k)
    encoder = load_encoder(options.model, options.fit)
    if options.pairs:
        pairs = read_pairs(options.pairs, options.image_root)
        captions = [pair.caption for pair in pairs]
        result = recall(encoder.images([p.image for p in pairs]), encoder.texts(captions), captions, options.k)
    else:
        files, labels, names = class_folders(options.folder)
        scores = encoder.images(files) @ class_features(encoder, names, _templates(options)).T
        result = {"images": len(files), "classes": len(names), "chance@1": 1 / len(names)}
        result |= {f"accuracy@{k}": top_k_accuracy(scores, torch.tensor(labels), k) for k in options.k}
    print(json.dumps(result, indent=2))


def _index(options: argparse.Namespace) -> None:
    from mllm.contrastive.index import BY, build_index
    from mllm.inference.dual_features import load_encoder
    from mllm.outputs import check_directory

    check_directory(Path(options.out), BY, [options.folder, options.model])
    encoder = load_encoder(options.model, options.fit)
    model = Path(options.model) / "final" if (Path(options.model) / "final").is_dir() else Path(options.model)
    count, skipped = build_index(encoder, str(model), options.folder, options.out)
    print(f"saved {options.out}: {count:,} images" + (f", {skipped:,} unreadable left out" if skipped else ""))


def _search(options: argparse.Namespace) -> None:
    from mllm.contrastive.index import open_index
    from mllm.inference.dual_features import load_encoder

    _check_k(options.k)
    _check_picture(options.sheet, _by(options))
    index = open_index(options.index)
    encoder = load_encoder(index.model, index.fit)
    _show(options, index.search(_query(encoder, options), options.k))


def _diagnose(options: argparse.Namespace) -> None:
    import json
    from dataclasses import asdict

    import torch

    from mllm.contrastive.data import read_pairs
    from mllm.contrastive.zeroshot import ENSEMBLE, class_features, class_folders
    from mllm.inference.dual_features import load_encoder
    from mllm.studies.diagnose import BY, diagnose, draw_diagnosis, prompt_sensitivity

    _check_picture(options.picture, BY, options.pairs)
    pairs = read_pairs(options.pairs, options.image_root)
    encoder = load_encoder(options.model, options.fit)
    images, texts = encoder.images([p.image for p in pairs]), encoder.texts([p.caption for p in pairs])
    result = asdict(diagnose(images, texts))
    if options.folder:
        files, labels, names = class_folders(options.folder)
        prompts = torch.stack([class_features(encoder, names, [template]) for template in ENSEMBLE])
        lowest, mean, highest = prompt_sensitivity(encoder.images(files), torch.tensor(labels), prompts)
        result |= {"accuracy_of_worst_prompt": lowest, "accuracy_of_prompts": mean, "accuracy_of_best_prompt": highest}
    print(json.dumps(result, indent=2))
    if options.picture:
        draw_diagnosis(images, texts, options.picture)
        print(f"saved {options.picture}")


def _misalignment(options: argparse.Namespace) -> None:
    from mllm.errors import UserError
    from mllm.studies.misalignment import Simulation, study

    if min(options.steps, options.seeds) < 1:
        raise UserError("--steps and --seeds: give at least 1")
    rows = study(Simulation(omitted=options.omitted, perturbed=options.perturbed, steps=options.steps), options.seeds,
                 Path(options.out))  # fmt: skip
    for row in rows:
        print(
            f"{row.structure:12} {row.kind:10} R2 {row.r2:5.2f}, from the unbiased factors themselves {row.ceiling:5.2f}"
        )
    print(f"saved {options.out}")
