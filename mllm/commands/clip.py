"""`mllm clip`: train a CLIP or SigLIP, and classify, retrieve, search and study with one."""

import argparse
from typing import Any

from mllm.commands.arguments import A_DUAL_ENCODER, add_config, add_part, add_parts, read_config
from mllm.commands.clip_arguments import add_fit, check_picture
from mllm.commands.clip_data import add_data
from mllm.commands.clip_eval import add_concepts, add_eval, add_templates, check_k, templates
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
        "mllm clip classify data_recipes/demo/clip data_recipes/demo/samples/shape.png --classes circle,triangle,rectangle",
    )
    _add_training(parts)
    add_data(parts)
    _add_naming(parts)
    _add_finding(parts)
    add_eval(parts)
    add_concepts(parts)
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
        "mllm clip classify data_recipes/demo/clip data_recipes/demo/samples/shape.png --classes circle,triangle,rectangle",
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
    add_templates(classify)
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


def _train(options: argparse.Namespace) -> None:
    from mllm.contrastive.settings import ContrastiveSettings

    settings = read_config(options, ContrastiveSettings, "mllm clip train CONFIG.yaml")
    # A mistake in the config is said before torch is loaded.
    from mllm.contrastive.run import train_clip

    final = train_clip(settings)
    if final is not None and launched_rank() == 0:
        print(f"saved {final}")


def _classify(options: argparse.Namespace) -> None:
    from mllm.contrastive.class_names import listed_names
    from mllm.contrastive.zeroshot import check_classes, class_features
    from mllm.errors import UserError
    from mllm.inference.dual_features import load_encoder
    from mllm.studies.adapt.saved import load_adapted

    check_k(options.k)
    names = listed_names(options.class_file, may_repeat=False) if options.class_file else _split(options.classes or "")
    if not names and not options.adapted:
        raise UserError("give classes: --classes NAME,NAME or --class-file FILE")
    if options.classes:
        check_classes(names)
    encoder = load_encoder(options.model, options.fit)
    if options.adapted:
        adapted = load_adapted(options.adapted, encoder)
        names = names or list(adapted.names)
        probabilities = adapted.classifier.scores(encoder.raw_images(options.images), names).softmax(-1)
    else:
        classes = class_features(encoder, names, templates(options))
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
