"""`mllm clip`: train a CLIP or SigLIP, and classify, retrieve, search and study with one."""

import argparse
from typing import Any

from mllm.commands.arguments import A_DUAL_ENCODER, add_config, add_part, add_parts, read_config
from mllm.commands.clip_arguments import A_FILE_OF_PAIRS, add_fit, add_image_root, check_k, check_picture
from mllm.commands.clip_export import add_export
from mllm.commands.clip_search import add_query, add_search, command_of, query_of, show
from mllm.commands.clip_studies import add_studies
from mllm.launch import launched_rank
from mllm.settings import expanded


def add(parser: argparse.ArgumentParser) -> None:
    """The subcommands of `mllm clip`; each parser's default `run` does the work."""
    parts = add_parts(
        parser,
        "clip_command",
        "Train a CLIP or SigLIP; classify, retrieve, search and study with one.",
        "mllm clip classify data_recipes/demo/clip data_recipes/demo/samples/shape.png --classes 'a circle,a rectangle'",
    )
    _add_training(parts)
    _add_naming(parts)
    _add_finding(parts)
    _add_scoring(parts)
    add_export(parts)
    add_studies(parts)


def _add_training(parts: Any) -> None:
    train = add_part(
        parts,
        "train",
        _train,
        "Train a CLIP- or SigLIP-style dual encoder from pairs of images and captions, as a YAML config says. The same "
        "command goes on with a run that was stopped.",
        "mllm clip train train/configs/demo_clip.yaml --set train.epochs=2",
        "deepspeed train/contrastive.py --config train/configs/demo_clip.yaml",
    )
    add_config(train)


def _add_naming(parts: Any) -> None:
    classify = add_part(
        parts,
        "classify",
        _classify,
        "Name images, without training, by the nearest of some class names.",
        "mllm clip classify data_recipes/demo/clip data_recipes/demo/samples/shape.png --classes 'a circle,a rectangle'",
    )
    classify.add_argument("model", type=expanded, help=A_DUAL_ENCODER)
    classify.add_argument("images", type=expanded, nargs="+", metavar="IMAGE", help="Image files.")
    classes = classify.add_mutually_exclusive_group()
    classes.add_argument("--classes", help="Names of classes, with commas between. Those of --adapted, by default.")
    classes.add_argument("--class-file", type=expanded, metavar="FILE", help="A file of class names, one a line.")
    classify.add_argument(
        "--adapted",
        type=expanded,
        metavar="DIR",
        help="Name by what `mllm clip adapt --out` kept in this directory, and not by prompts.",
    )
    _add_templates(classify)
    add_fit(classify)
    classify.add_argument(
        "-k", type=int, default=3, help="Number of the likeliest classes to name (default: %(default)s)."
    )


def _add_finding(parts: Any) -> None:
    retrieve = add_part(
        parts,
        "retrieve",
        _retrieve,
        "Find the images of a folder that are nearest to a text or an image.",
        "mllm clip retrieve data_recipes/demo/clip runs/demo/data/images --text 'a dog' --sheet dogs.png",
    )
    retrieve.add_argument("model", type=expanded, help=A_DUAL_ENCODER)
    retrieve.add_argument("folder", type=expanded, help="A folder of images, searched with its subfolders.")
    add_query(retrieve)
    add_fit(retrieve)
    add_search(parts)


def _add_scoring(parts: Any) -> None:
    evaluate = add_part(
        parts,
        "eval",
        _evaluate,
        "Score a dual encoder: recall@k of pairs both ways, or zero-shot accuracy on a folder of class folders.",
        "mllm clip eval runs/demo/clip --pairs runs/demo/data/heldout/clip_pairs.jsonl --image-root runs/demo/data",
        "mllm clip eval runs/demo/clip --folder pets --ensemble",
    )
    evaluate.add_argument("model", type=expanded, help=A_DUAL_ENCODER)
    what = evaluate.add_mutually_exclusive_group(required=True)
    what.add_argument("--pairs", type=expanded, metavar="FILE", help=f"{A_FILE_OF_PAIRS}, for recall@k.")
    what.add_argument("--folder", type=expanded, help="A folder whose folders are classes, for accuracy.")
    add_image_root(evaluate, "--pairs")
    evaluate.add_argument(
        "-k",
        type=int,
        nargs="+",
        default=[1, 5, 10],
        help="Ranks up to which a hit counts (default: 1 5 10).",
    )
    _add_templates(evaluate)
    add_fit(evaluate)


def _add_templates(parser: argparse.ArgumentParser) -> None:
    templates = parser.add_mutually_exclusive_group()
    templates.add_argument(
        "--template",
        action="append",
        default=[],
        help="A prompt with {} for the class name. Repeatable: the features of several are averaged.",
    )
    templates.add_argument("--templates", type=expanded, metavar="FILE", help="A file of such prompts, one a line.")
    templates.add_argument("--ensemble", action="store_true", help="Average over eight prompts.")


def _train(options: argparse.Namespace) -> None:
    from mllm.contrastive.settings import ContrastiveSettings

    settings = read_config(options, ContrastiveSettings, "mllm clip train CONFIG.yaml")
    # A mistake in the config is said before torch is loaded.
    from mllm.contrastive.run import train_clip

    final = train_clip(settings)
    if final is not None and launched_rank() == 0:
        print(f"saved {final}")


def _templates(options: argparse.Namespace) -> list[str]:
    from mllm.contrastive.zeroshot import DEFAULT_TEMPLATES, ENSEMBLE, read_lines

    if options.templates:
        return read_lines(options.templates, "template")
    return options.template or list(ENSEMBLE if options.ensemble else DEFAULT_TEMPLATES)


def _classify(options: argparse.Namespace) -> None:
    from mllm.contrastive.zeroshot import check_classes, class_features, read_lines
    from mllm.errors import UserError
    from mllm.inference.dual_features import load_encoder
    from mllm.studies.adapt.saved import load_adapted

    check_k(options.k)
    names = read_lines(options.class_file, "class") if options.class_file else _split(options.classes or "")
    if not names and not options.adapted:
        raise UserError("give classes: --classes NAME,NAME or --class-file FILE")
    encoder = load_encoder(options.model, options.fit)
    if options.adapted:
        adapted = load_adapted(options.adapted, encoder)
        names = names or list(adapted.names)
        check_classes(names)
        probabilities = adapted.classifier.scores(encoder.raw_images(options.images), names).softmax(-1)
    else:
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
    from mllm.inference.dual_features import image_files, load_encoder, readable_features

    check_k(options.k)
    check_picture(options.sheet, command_of(options))
    files = image_files(options.folder)
    encoder = load_encoder(options.model, options.fit)
    readable, features, skipped = readable_features(encoder, files)
    show(options, nearest(features, readable, query_of(encoder, options), options.k))
    if skipped:
        print(f"{skipped:,} unreadable image{'s' if skipped > 1 else ''} left out")


def _evaluate(options: argparse.Namespace) -> None:
    import json

    import torch

    from mllm.contrastive.pairs import read_pairs
    from mllm.contrastive.retrieval import pairs_recall
    from mllm.contrastive.zeroshot import class_features, class_folders, top_k_accuracy
    from mllm.inference.dual_features import load_encoder

    for k in options.k:
        check_k(k)
    encoder = load_encoder(options.model, options.fit)
    if options.pairs:
        result = pairs_recall(encoder, read_pairs(options.pairs, options.image_root), options.k)
    else:
        files, labels, names = class_folders(options.folder)
        scores = encoder.images(files) @ class_features(encoder, names, _templates(options)).T
        result = {"images": len(files), "classes": len(names), "chance@1": 1 / len(names)}
        result |= {f"accuracy@{k}": top_k_accuracy(scores, torch.tensor(labels), k) for k in options.k}
    print(json.dumps(result, indent=2))
