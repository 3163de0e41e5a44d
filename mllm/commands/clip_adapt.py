"""`mllm clip adapt`: learn a few labelled images on a frozen dual encoder, and keep what was learned."""

import argparse
import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm.commands.arguments import A_DUAL_ENCODER, add_part, picture
from mllm.commands.clip_arguments import add_fit, check_picture
from mllm.console import report_console
from mllm.errors import UserError
from mllm.settings import expanded

if TYPE_CHECKING:
    from mllm.studies.adapt.run import Result
    from mllm.studies.adapt.sources import Problem

BY = "mllm clip adapt"
NAMES = ("zero_shot", "linear_probe", "tip_adapter", "tip_adapter_f", "coop", "cocoop", "image_head", "clap")
ATTACKS = ("fgsm", "pgd-20", "cw-20")
CHANGES = ("size", "color", "image_type", "style", "swap")
SEARCH = "search"


def add_adapt(parts: Any) -> None:
    parser = add_part(
        parts,
        "adapt",
        _adapt,
        "Learn a few labelled images on frozen, cached features of a dual encoder, and score unseen ones.",
        "mllm clip adapt coop data_recipes/demo/clip --train runs/demo/data/clip_pairs.jsonl \\",
        "    --image-root runs/demo/data --test runs/demo/data/heldout/clip_pairs.jsonl \\",
        "    --class-file classes.txt --shots 1 4 16 --seeds 3 --out runs/adapted",
    )
    parser.add_argument("method", choices=[*NAMES, "all"], help="How to learn; all compares the methods.")
    parser.add_argument("model", type=expanded, help=A_DUAL_ENCODER)
    _add_data(parser.add_argument_group("data"))
    _add_protocol(parser.add_argument_group("protocol"))
    add_fit(parser)
    _add_coop(parser.add_argument_group("settings of coop"))
    _add_heads(parser.add_argument_group("settings of zero_shot, tip_adapter, image_head and clap"))


def _add_data(data: "argparse._ArgumentGroup") -> None:
    data.add_argument(
        "--train",
        type=expanded,
        required=True,
        help="A folder of class folders, pairs (.jsonl) whose captions are classes, a data set in a layout of CoOp's "
        "authors (split_zhou_*.json, FGVC-Aircraft, ImageNet), or a folder of domains of class folders (VLCS, PACS, "
        "OfficeHome), each of which is learned and scored by itself.",
    )
    data.add_argument(
        "--test",
        type=expanded,
        nargs="+",
        default=[],
        help="What to score, as --train; several are several domains. The test images of --train, by default.",
    )
    data.add_argument(
        "--image-root",
        type=expanded,
        default=".",
        metavar="DIR",
        help="Directory that image paths of pairs start from (default: %(default)s).",
    )
    data.add_argument(
        "--class-file",
        type=expanded,
        metavar="FILE",
        help="A file of class names, one a line. The classes of --train, by default.",
    )
    data.add_argument(
        "--cache",
        type=expanded,
        default="runs/clip_features",
        metavar="DIR",
        help="Directory where features are kept (default: %(default)s).",
    )
    data.add_argument(
        "--out",
        type=expanded,
        metavar="DIR",
        help="A directory for results.json and what was learned, each for `mllm clip classify --adapted`. Nothing is "
        "kept by default.",
    )
    data.add_argument(
        "--picture", type=picture, metavar="OUT.png", help="Where a t-SNE picture of the test features is written."
    )


def _add_protocol(protocol: "argparse._ArgumentGroup") -> None:
    protocol.add_argument(
        "--shots",
        type=int,
        nargs="+",
        default=[1, 2, 4, 8, 16],
        help="Numbers of training images of each class (default: 1 2 4 8 16).",
    )
    protocol.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="Number of draws of the shots (default: %(default)s)."
    )
    protocol.add_argument(
        "--base-to-new", action="store_true", help="Learn half of the classes and score the other half, too."
    )
    protocol.add_argument(
        "--views",
        type=int,
        default=0,
        metavar="N",
        help="Let CoOp, CoCoOp and Tip-Adapter learn from this number of random views of each shot, cropped and "
        "mirrored as by their authors, in place of the image as it is (default: %(default)s).",
    )
    protocol.add_argument(
        "--attack",
        nargs="+",
        choices=ATTACKS,
        default=[],
        help="Score the test images after these attacks within 0.031 of each pixel, too. None by default.",
    )


def _add_coop(coop: "argparse._ArgumentGroup") -> None:
    coop.add_argument(
        "--context", type=int, default=16, metavar="N", help="Number of context vectors (default: %(default)s)."
    )
    coop.add_argument(
        "--start", metavar="WORDS", help="Begin as these words, such as 'a photo of a', and not as random vectors."
    )
    coop.add_argument(
        "--position",
        choices=["end", "middle", "front"],
        default="end",
        help="Where the class name stands among the context vectors (default: %(default)s).",
    )
    coop.add_argument("--class-specific", action="store_true", help="Learn context vectors of its own for each class.")


def _add_heads(heads: "argparse._ArgumentGroup") -> None:
    heads.add_argument(
        "--template",
        action="append",
        default=[],
        help="A prompt with {} for the class name. Repeatable: the features of several are averaged. The data set's own "
        "in a layout of CoOp's authors, else 'a photo of a {}.'.",
    )
    heads.add_argument(
        "--scale",
        type=_scale,
        default=0.056,
        help="Share of the head of image_head and clap once it is learned; 'search' finds it by images that are held back "
        "(default: %(default)s).",
    )
    heads.add_argument(
        "--prompts",
        type=expanded,
        action="append",
        default=[],
        metavar="DIR",
        help="A folder with a file CLASS.txt of prompts, one a line, for clap to learn from; 'template' is the authors' "
        "480 (the default). Repeatable: several are put together.",
    )
    heads.add_argument(
        "--augment",
        type=_change,
        nargs="+",
        default=[],
        metavar="PART=CHANCE",
        help=f"Chances that clap's prompts lose a part ({', '.join(CHANGES[:-1])}) or swap their halves (swap); a half for "
        "size, color and swap, 0 for the others by default.",
    )
    heads.add_argument(
        "--replace", action="store_true", help="Put another word in place of a part that clap's prompts lose."
    )


def _scale(text: str) -> float | str:
    if text == SEARCH:
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor {SEARCH!r}") from None


def _change(text: str) -> tuple[str, float]:
    part, _, chance = text.partition("=")
    try:
        if part in CHANGES and 0 <= float(chance) <= 1:
            return part, float(chance)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r}: give PART=CHANCE, a chance from 0 to 1 of: {', '.join(CHANGES)}")


def _adapt(options: argparse.Namespace) -> None:
    from mllm.contrastive.zeroshot import read_lines
    from mllm.files import atomic_directory
    from mllm.inference.dual_features import load_encoder
    from mllm.studies.adapt.problem import encode_labelled
    from mllm.studies.adapt.sources import read_problems
    from mllm.studies.adapt.tables import as_json

    _check(options)
    check_picture(options.picture, BY)
    names = read_lines(options.class_file, "class") if options.class_file else None
    encoder = load_encoder(options.model, options.fit)

    def encode(images: Any, class_names: Sequence[str]) -> Any:
        files, labels = images
        return encode_labelled(encoder, files, labels, class_names, options.model, Path(options.cache))

    problems = read_problems(options.train, options.test, options.image_root, names, encode)
    inputs = [source for source in (options.model, options.train, *options.test) if Path(source).exists()]
    keeping = atomic_directory(options.out, BY, inputs) if options.out else nullcontext(None)
    with keeping as directory:
        results = [row for problem in problems for row in _run(options, encoder, problem, directory)]
        if directory is not None:
            record = {"model": str(options.model), "train": str(options.train), "results": as_json(results)}
            (directory / "results.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", "utf-8")
    _print(results, options.attack)
    if options.out:
        print(f"saved {options.out}")
    if options.picture:
        print(f"saved {options.picture}")


def _check(options: argparse.Namespace) -> None:
    """Raise UserError for options that don't go together."""
    if min(options.shots) < 1 or options.seeds < 1 or options.context < 1:
        raise UserError("--shots, --seeds and --context: give at least 1")
    if options.views < 0:
        raise UserError(f"--views {options.views}: give 0 or more")
    if options.base_to_new and len(options.test) > 1:
        raise UserError(f"--base-to-new scores one --test, not {len(options.test)}")


def _run(options: argparse.Namespace, encoder: Any, problem: "Problem", directory: Path | None) -> list["Result"]:
    """Fit and score every method that is asked for, and write what was learned below `directory`."""
    from mllm.studies.adapt.heads import HeadClassifier
    from mllm.studies.adapt.run import Extras, base_to_new, few_shot
    from mllm.studies.adapt.saved import save_adapted
    from mllm.studies.adapt.tsne import draw_tsne

    results: list[Result] = []
    tests = dict(problem.tests)
    test = next(iter(tests.values()))
    shown = {"features": test.features}
    of = "" if len(tests) > 1 or options.test else f"-{next(iter(tests))}"
    for name in NAMES if options.method == "all" else (options.method,):

        def keep(classifier: Any, shots: int, seed: int, classes: Sequence[str], name: str = name) -> None:
            if isinstance(classifier, HeadClassifier) and seed == 0:
                shown[name] = classifier.head(test.raw, classifier.scale).detach()
            if directory is not None:
                folder = directory / f"{name}{of}-{shots}-shots-seed-{seed}".replace("/", "_")
                folder.mkdir()
                save_adapted(classifier, classes, encoder, folder)

        method, extras = _method(name, options, problem.template), Extras(options.views, options.attack, keep)
        seeds = range(options.seeds)
        if options.base_to_new:
            for shots in options.shots:
                results += base_to_new(name, method, encoder, problem.train, test, shots, seeds, extras)
        else:
            results += few_shot(name, method, encoder, problem.train, tests, options.shots, seeds, extras)
    if options.picture:
        draw_tsne(shown, test.labels, test.names, options.picture, BY)
    return results


def _method(name: str, options: argparse.Namespace, template: str | None) -> Any:
    from mllm.studies.adapt.clap_prompts import TEMPLATE, PromptChanges
    from mllm.studies.adapt.run import METHODS

    templates = tuple(options.template) or ((template,) if template else None)
    settings: dict[str, Any] = {}
    if name == "coop":
        settings = {"context_count": options.context, "position": options.position, "start": options.start}
        settings |= {"class_specific": options.class_specific}
    if name in ("image_head", "clap"):
        settings["scale"] = None if options.scale == SEARCH else options.scale
    if name == "clap":
        settings["sources"] = tuple(options.prompts) or (TEMPLATE,)
        settings["changes"] = PromptChanges(**dict(options.augment), replaced=options.replace)
    if templates and name not in ("linear_probe", "coop", "cocoop"):
        settings["templates"] = templates
    return METHODS[name](**settings)


def _print(results: Sequence["Result"], attacks: Sequence[str]) -> None:
    from rich.table import Table

    from mllm.studies.adapt.tables import robust_table, table

    for head, rows in [table(results), *([robust_table(results)] if attacks else [])]:
        shown = Table(*head)
        for row in rows:
            shown.add_row(*row)
        report_console().print(shown)
