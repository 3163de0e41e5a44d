"""`mllm clip eval | concepts`: what a dual encoder is worth, and how often captions name what it should know."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm.commands.arguments import A_DUAL_ENCODER, add_part, picture
from mllm.commands.clip_arguments import A_FILE_OF_PAIRS, add_fit, add_image_root, check_picture
from mllm.errors import UserError
from mllm.settings import expanded

if TYPE_CHECKING:
    from mllm.contrastive.labelled import Labelled
    from mllm.contrastive.zero_shot_run import Choice

BY, BY_CONCEPTS = "mllm clip eval", "mllm clip concepts"
PUBLISHED_HELP = "or the name of a published ensemble, such as imagenet (80 prompts), cifar10 or oxford_pets"


def add_eval(parts: Any) -> None:
    evaluate = add_part(
        parts,
        "eval",
        _evaluate,
        "Score a dual encoder: recall@k of pairs both ways, or zero-shot accuracy on labelled images.",
        "mllm clip eval runs/demo/clip --pairs runs/demo/data/heldout/clip_pairs.jsonl --image-root runs/demo/data",
        "mllm clip eval runs/demo/clip --folder pets --templates oxford_pets --table",
    )
    evaluate.add_argument("model", type=expanded, help=A_DUAL_ENCODER)
    what = evaluate.add_mutually_exclusive_group(required=True)
    what.add_argument("--pairs", type=expanded, metavar="FILE", help=f"{A_FILE_OF_PAIRS}, for recall@k.")
    what.add_argument(
        "--folder",
        type=expanded,
        help="A folder whose folders are classes, for accuracy; or a webdataset of CLIP_benchmark, for accuracy or recall.",
    )
    add_image_root(evaluate, "--pairs")
    evaluate.add_argument(
        "--split", default="test", help="The folder of shards of a webdataset of CLIP_benchmark (default: %(default)s)."
    )
    evaluate.add_argument(
        "-k",
        type=int,
        nargs="+",
        help="Ranks up to which a hit counts (default: 1 5 10 of pairs, 1 5 of classes).",
    )
    evaluate.add_argument(
        "--class-file",
        type=expanded,
        metavar="FILE",
        help="A file that names the class of each folder: lines of folder, tab, name, or of names in the folders' order, or "
        "JSON; imagenet takes its names from open_clip. The folders' own names, by default.",
    )
    evaluate.add_argument(
        "--groups",
        action="store_true",
        help="Take the folder for GROUP/CLASS or NOTE/GROUP/CLASS, and choose among the classes of each group.",
    )
    add_templates(evaluate)
    evaluate.add_argument(
        "--frequencies",
        type=expanded,
        metavar="FILE.csv",
        help="A file of mllm clip concepts; accuracy is then also told by how often captions name a class.",
    )
    evaluate.add_argument(
        "--confusion", type=picture, metavar="OUT.png", help="Where a picture of what is taken for what is written."
    )
    evaluate.add_argument(
        "--table", action="store_true", help="Print a table, with intervals and chance, and not JSON."
    )
    add_fit(evaluate)


def add_concepts(parts: Any) -> None:
    concepts = add_part(
        parts,
        "concepts",
        _count_concepts,
        "Count how many captions name each of some concepts, reading the captions as they come.",
        "mllm clip concepts runs/demo/data/clip_pairs.jsonl --concepts concepts.txt --out frequencies.csv",
    )
    concepts.add_argument(
        "captions",
        type=expanded,
        nargs="+",
        help="Files of captions (.txt, one a line; .jsonl, .csv, .tsv, .parquet or .tar), folders, or lists in braces.",
    )
    concepts.add_argument(
        "--concepts",
        type=expanded,
        required=True,
        metavar="FILE",
        help="Names, one a line; or YAML of group: names, or of group: name: words that count as it, too.",
    )
    concepts.add_argument(
        "--within-words", action="store_true", help="Count a name within longer words, too, as tea in team."
    )
    concepts.add_argument(
        "--out", type=Path, metavar="FILE.csv", help="Where the counts are written, for --frequencies."
    )


def add_templates(parser: argparse.ArgumentParser) -> None:
    """The prompts that class names are put into, which `templates` reads."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--template",
        action="append",
        default=[],
        help="A prompt with {} for the class name. Repeatable: the features of several are averaged.",
    )
    group.add_argument(
        "--templates", type=expanded, metavar="FILE", help=f"A file of such prompts, one a line, {PUBLISHED_HELP}."
    )
    group.add_argument("--ensemble", action="store_true", help="Average over eight prompts.")
    group.add_argument("--bare", action="store_true", help="Take the class names as they are, without a prompt.")


def templates(options: argparse.Namespace, own: list[str] | None = None) -> list[str]:
    """Return the prompts that are asked for; without any those of the data set, or CLIP's one."""
    from mllm.contrastive.prompts import BARE, read_templates
    from mllm.contrastive.zeroshot import DEFAULT_TEMPLATES, ENSEMBLE, check_templates

    chosen = options.template or (list(ENSEMBLE) if options.ensemble else own or list(DEFAULT_TEMPLATES))
    if options.templates:
        chosen = read_templates(options.templates)
    elif options.bare:
        chosen = list(BARE)
    check_templates(chosen)
    return chosen


def check_k(k: int) -> None:
    """Raise UserError for a rank that is none."""
    if k < 1:
        raise UserError(f"-k {k}: give at least 1")


def _evaluate(options: argparse.Namespace) -> None:
    from mllm.contrastive.labelled import is_retrieval, read_captioned
    from mllm.contrastive.pairs import read_pairs
    from mllm.contrastive.retrieval import pairs_recall
    from mllm.inference.dual_features import load_encoder

    for k in options.k or ():
        check_k(k)
    check_picture(options.confusion, BY)
    if options.pairs or is_retrieval(options.folder):
        of_classes = ("class_file", "groups", "frequencies", "confusion")
        wrong = next((name for name in of_classes if getattr(options, name)), None)
        if wrong is not None:
            raise UserError(
                f"--{wrong.replace('_', '-')} is of classes; {options.pairs or options.folder} holds captions"
            )
        pairs = (
            read_pairs(options.pairs, options.image_root)
            if options.pairs
            else read_captioned(options.folder, options.split)
        )
        result = pairs_recall(load_encoder(options.model, options.fit), pairs, options.k or [1, 5, 10])
        _print(options, result)
        return
    _evaluate_classes(options)


def _evaluate_classes(options: argparse.Namespace) -> None:
    from mllm.contrastive.concepts import read_frequencies
    from mllm.contrastive.labelled import read_groups, read_labelled
    from mllm.contrastive.zero_shot_run import classify, report
    from mllm.inference.dual_features import load_encoder

    frequencies = read_frequencies(options.frequencies) if options.frequencies else None
    data: dict[str, Labelled] = (
        read_groups(options.folder, options.class_file)
        if options.groups
        else {"": read_labelled(options.folder, options.class_file, options.split)}
    )
    prompts = {group: templates(options, own.templates) for group, own in data.items()}
    encoder = load_encoder(options.model, options.fit)
    choices = {group: classify(encoder, own, prompts[group], options.k or [1, 5]) for group, own in data.items()}
    if options.table:
        _print_table(choices)
    else:
        print(json.dumps(report(choices, frequencies), indent=2))
    if options.confusion:
        from mllm.contrastive.confusion import draw_confusions

        draw_confusions({group: (c.counts, c.names) for group, c in choices.items()}, options.confusion, BY)
        print(f"saved {options.confusion}")


def _print(options: argparse.Namespace, result: dict[str, float]) -> None:
    if not options.table:
        print(json.dumps(result, indent=2))
        return
    from rich.table import Table

    from mllm.console import report_console

    table = Table("measure", "value")
    for name, value in result.items():
        table.add_row(name, f"{value:,.0f}" if name in ("images", "captions") else f"{100 * value:.1f} %")
    report_console().print(table)


def _print_table(choices: "dict[str, Choice]") -> None:
    from rich.table import Table

    from mllm.console import report_console

    table = Table(
        *([] if "" in choices else ["group"]), "images", "classes", "measure", "%", "95 % interval", "chance %"
    )
    for group, choice in choices.items():
        for name, score in choice.scores.items():
            chance = "" if score.chance is None else f"{100 * score.chance:.1f}"
            interval = f"{100 * score.low:.1f} – {100 * score.high:.1f}"
            sizes = (f"{choice.images:,}", f"{len(choice.names):,}")
            table.add_row(*([group] if group else []), *sizes, name, f"{100 * score.value:.1f}", interval, chance)
    report_console().print(table)


def _count_concepts(options: argparse.Namespace) -> None:
    from mllm.contrastive.concepts import (
        caption_files,
        count_concepts,
        read_captions,
        read_concepts,
        write_frequencies,
    )
    from mllm.files import write_text_atomically
    from mllm.outputs import check_file

    if options.out:
        check_file(options.out, BY_CONCEPTS, [*options.captions, options.concepts])
    concepts = read_concepts(options.concepts)
    captions = read_captions(caption_files(options.captions))
    found, total = count_concepts(captions, concepts, options.within_words)
    text = write_frequencies(found)
    if options.out:
        write_text_atomically(options.out, text, BY_CONCEPTS)
        print(f"saved {options.out}: {len(found):,} concepts in {total:,} captions")
    else:
        print(text, end="")
