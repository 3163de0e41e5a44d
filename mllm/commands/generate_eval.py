"""`mllm generate eval`: what generated pictures are worth, as figures and on a page."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm.commands.arguments import A_DUAL_ENCODER, add_part, at_least_1
from mllm.commands.clip_arguments import A_FILE_OF_PAIRS, add_fit
from mllm.commands.generate_pictures import (
    add_judges,
    add_own_parts,
    add_sampling,
    finite,
    open_generator,
    open_judges,
    own_parts,
    paint_with,
    questions_of,
)
from mllm.console import report_console
from mllm.errors import UserError
from mllm.settings import expanded

if TYPE_CHECKING:
    from mllm.generation.judging.drawn import Drawn
    from mllm.generation.judging.scores import Scored, Scorer
    from mllm.inference.dual_features import DualEncoder

BY = "mllm generate eval"
SAME_CLIP = (
    "The judging CLIP is the one that {} draws from: clip_t, clip_score and r_precision by it are optimistic. Judge by "
    "another, by --rule or by --judge."
)


def add_eval(parts: Any) -> None:
    parser = add_part(
        parts,
        "eval",
        _evaluate,
        "Score generated pictures: how well they show their prompts, how like real ones and how various they are, whether "
        "they are copies, and what a rule and a multimodal LLM say. Writes scores.json and a page.",
        "mllm generate eval runs/shapes/final runs/shapes_eval --clip runs/demo/clip/final --prompts prompts.txt \\",
        "    --guidance 0 1 2 4 8 --rule data_recipes/demo/flat_drawings.py:judge",
        "mllm generate eval runs/pictures runs/pictures_eval --clip runs/demo/clip/final \\",
        "    --real runs/demo/data/heldout/clip_pairs.jsonl --image-root runs/demo/data",
    )
    parser.add_argument(
        "source",
        type=expanded,
        metavar="GENERATED_OR_MODEL",
        help="A directory of pictures with pictures.jsonl, or a file of such lines {image, caption}; or a generator, which "
        "draws them first.",
    )
    parser.add_argument("out", type=expanded, help="The directory to write, which also gets what is drawn.")
    parser.add_argument("--clip", type=expanded, required=True, metavar="DIR", help=f"Who judges. {A_DUAL_ENCODER}")
    parser.add_argument(
        "--real", type=expanded, metavar="FILE", help=f"{A_FILE_OF_PAIRS}: real images, which nothing was trained on."
    )
    parser.add_argument(
        "--training", type=expanded, metavar="FILE", help=f"{A_FILE_OF_PAIRS}: what the generator was trained on."
    )
    parser.add_argument(
        "--image-root",
        type=expanded,
        metavar="DIR",
        help="Directory that image paths of --real and --training start from. That of each file, by default.",
    )
    parser.add_argument(
        "--show",
        action="append",
        default=[],
        metavar="TITLE=DIR",
        help="Further pictures for the page, such as variations, interpolations or edits: a directory of them. Repeatable.",
    )
    drawing = parser.add_argument_group("what a generator draws")
    drawing.add_argument(
        "--prompts",
        type=expanded,
        metavar="FILE",
        help="Prompts, one a line, or JSON lines with prompt. Those of --questions by default.",
    )
    drawing.add_argument(
        "-n", type=at_least_1, default=20, metavar="N", help="Number of pictures of each prompt (default: %(default)s)."
    )
    drawing.add_argument(
        "--guidance",
        type=finite,
        nargs="+",
        default=[3.0],
        metavar="W",
        help="Weight of the prompt; several are drawn in turn, and the page shows what changes (default: 3).",
    )
    add_sampling(parser)
    add_own_parts(parser)
    add_judges(parser)
    add_fit(parser)


def _evaluate(options: argparse.Namespace) -> None:
    from mllm.generation.judging.page import write_page
    from mllm.generation.judging.report import check_report, write_scores
    from mllm.inference.dual_features import load_encoder

    out = Path(options.out)
    check_report(out, BY)
    strips = _strips(options.show)
    references = _references(options)
    encoder = _checked(load_encoder(options.clip, options.fit), options.clip)
    questions = questions_of(options)
    judges = open_judges(options, questions)
    sets, notes = _sets(options, out, encoder, list(questions))
    scored, diagnoses = _scored(options, encoder, references, judges, sets)
    write_scores(out, scored, diagnoses, notes, BY)
    write_page(
        out / "index.html", f"generated pictures: {Path(options.source).name}", scored, notes, strips, diagnoses, BY
    )
    for note in notes:
        print(f"warning: {note}")
    _print(scored)
    print(f"saved {out / 'index.html'}")


def _checked(encoder: "DualEncoder", path: str) -> "DualEncoder":
    from mllm.inference.text_side import check_reads_end

    check_reads_end(encoder.model.config, encoder.tokenizer, path)
    return encoder


def _references(options: argparse.Namespace) -> "dict[str, list[Drawn]]":
    from mllm.generation.judging.drawn import read_pictures

    given = {"real": options.real, "training": options.training}
    return {name: read_pictures(path, options.image_root) for name, path in given.items() if path is not None}


def _strips(shown: list[str]) -> "dict[str, list[Drawn]]":
    from mllm.generation.judging.drawn import read_pictures

    strips = {}
    for one in shown:
        title, is_given, directory = one.partition("=")
        if not is_given or not title or not directory:
            raise UserError(f"--show {one}: give TITLE=DIR, such as variations=runs/varied")
        strips[title] = read_pictures(directory)
    return strips


def _sets(
    options: argparse.Namespace, out: Path, encoder: "DualEncoder", prompts: list[str]
) -> "tuple[dict[str, list[Drawn]], list[str]]":
    """The sets of pictures by their titles, drawn where a generator is named, and what is to be said about the judge."""
    from mllm.generation.judging.drawn import PICTURES, read_pictures, read_prompts

    source = Path(options.source)
    if source.is_file() or (source / PICTURES).is_file():
        return {source.name: read_pictures(source)}, []
    prompts = read_prompts(options.prompts) if options.prompts else prompts
    if not prompts:
        raise UserError(
            f"{source} holds no pictures, and as a generator it needs prompts: give --prompts or --questions"
        )
    from mllm.generation.judging.report import draws_from

    generator = open_generator(options, options.source)
    sets = {f"guidance {w:g}": _drawn(options, out, generator, w, prompts) for w in options.guidance}
    return sets, [SAME_CLIP.format(options.source)] if draws_from(generator, encoder) else []


def _drawn(
    options: argparse.Namespace, out: Path, generator: Any, guidance: float, prompts: list[str]
) -> "list[Drawn]":
    from rich.progress import track

    from mllm.generation.judging.drawing import PictureFolder, draw_all

    noted = {"model": options.source, "guidance": guidance, "steps": options.steps} | own_parts(options)
    folder = PictureFolder(out / f"guidance_{guidance:g}", noted | {"base_seed": options.seed}, BY)
    paint = paint_with(generator, options, guidance)
    batches = draw_all(folder, paint, prompts, options.n, options.seed, noted, options.batch_size)
    for _ in track(batches, f"guidance {guidance:g}", total=-(-len(prompts) * options.n // options.batch_size)):
        pass
    wanted = set(prompts)
    return [picture for picture in folder.pictures if picture.caption in wanted and picture.made["number"] < options.n]


def _scored(
    options: argparse.Namespace,
    encoder: "DualEncoder",
    references: "dict[str, list[Drawn]]",
    judges: list[Any],
    sets: "dict[str, list[Drawn]]",
) -> "tuple[list[Scored], dict[str, dict[str, float]]]":
    """Every set measured, real images last, and how the encoder's space looks with each."""
    from rich.progress import Progress

    from mllm.generation.judging.judges import together
    from mllm.generation.judging.scores import References, Scorer

    with Progress(transient=True) as progress:
        bar = progress.add_task("judging", total=None)

        def on_judged(done: int, count: int) -> None:
            progress.update(bar, completed=done, total=count)

        scorer = Scorer(encoder, judge=together(judges, on_judged) if judges else None, seed=options.seed)
        encoded = {name: scorer.encode(pictures) for name, pictures in references.items()}
        scorer.references = References(**encoded)
        scored = [scorer.score(title, pictures) for title, pictures in sets.items()]
        if "real" in references:
            scored.append(_real(scorer, references["real"], judges))
    return scored, {one.title: _diagnosis(scorer, one) for one in scored if len(one.encoded.pictures) > 1}


def _real(scorer: "Scorer", real: "list[Drawn]", judges: list[Any]) -> "Scored":
    """The real images measured as generated ones are: how far the judges are to be believed."""
    from mllm.generation.judging.judges import Asking

    questions = next((one.questions for one in judges if isinstance(one, Asking)), None)
    known = [picture for picture in real if questions is None or picture.caption in questions]
    if not known:
        raise UserError(
            "--real has no caption that --questions asks about: the judge can't be held against real images"
        )
    return scorer.score("real images", known if len(known) < len(real) else real)


def _diagnosis(scorer: "Scorer", one: "Scored") -> dict[str, float]:
    """Gap and geometry of a set's pictures and captions, and how far zero-shot naming hangs on the prompt's words."""
    from dataclasses import asdict

    import torch

    from mllm.contrastive.zeroshot import ENSEMBLE
    from mllm.studies.diagnose import diagnose, prompt_sensitivity

    captions = one.encoded.captions
    told = {
        name: float(value)
        for name, value in asdict(diagnose(one.encoded.features, scorer.features_of(captions))).items()
    }
    things = {caption: caption.removeprefix("an ").removeprefix("a ") for caption in captions}
    names = list(dict.fromkeys(things.values()))
    if len(names) > 1:
        labels = torch.tensor([names.index(things[caption]) for caption in captions])
        prompts = scorer.features_of([template.replace("{}", name) for template in ENSEMBLE for name in names])
        prompts = prompts.reshape(len(ENSEMBLE), len(names), -1)
        worst, mean, best = prompt_sensitivity(one.encoded.features, labels, prompts)
        told |= {"accuracy_of_worst_prompt": worst, "accuracy_of_prompts": mean, "accuracy_of_best_prompt": best}
    return told


def _print(scored: "list[Scored]") -> None:
    from rich.table import Table

    from mllm.generation.judging.page import figure_lines

    columns = {one.title: dict(figure_lines(one)) for one in scored}
    table = Table("", *columns)
    for name in dict.fromkeys(name for column in columns.values() for name in column):
        table.add_row(name, *(column.get(name, "–") for column in columns.values()))
    report_console().print(table)
