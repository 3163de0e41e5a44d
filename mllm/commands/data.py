"""`mllm data`: show, validate, convert and survey training data, and lay out images."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm.commands.arguments import add_part, add_parts
from mllm.commands.layout import add_layout
from mllm.commands.train import read_run
from mllm.errors import UserError
from mllm.settings import expanded

if TYPE_CHECKING:
    from mllm.conversation.schema import Sample
    from mllm.data.validate import Check, Findings
    from mllm.media.visual import VisualPlanner


def add(parser: argparse.ArgumentParser) -> None:
    parts = add_parts(
        parser,
        "data_command",
        "Show, validate, convert or survey training data, and say what images become.",
        "mllm data validate data_recipes/demo/instruct.yaml",
    )
    _add_show(parts)
    _add_validate(parts)
    _add_report(parts)
    _add_convert(parts)
    add_layout(parts)


def _add_show(parts: Any) -> None:
    show = add_part(
        parts,
        "show",
        _show,
        "Print samples as a model sees them, coloured by trained and masked tokens; of a pair the chosen side and then the "
        "rejected one. The config's recipe, tokenizer and prompt format are used.",
        "mllm data show train/configs/demo_stage2.yaml --count 3",
    )
    show.add_argument("config", type=expanded, metavar="CONFIG", help="A training config.")
    show.add_argument(
        "--count", type=int, default=3, metavar="N", help="Number of samples to print (default: %(default)s)."
    )


def _add_validate(parts: Any) -> None:
    check = add_part(
        parts,
        "validate",
        _validate,
        "Read and check every sample of a recipe and decode its images, and of videos eight frames. Exits with 2 when there "
        "are problems.",
        "mllm data validate data_recipes/demo/instruct.yaml --config train/configs/demo_stage2.yaml --fix runs/clean",
    )
    check.add_argument("recipe", type=expanded, metavar="RECIPE", help="A YAML file that names the sources.")
    check.add_argument(
        "--config",
        type=expanded,
        metavar="CONFIG",
        help="A training config, to check lengths and labels with its tokenizer and prompt format, too.",
    )
    check.add_argument(
        "--jobs",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="Number of threads that decode images (default: %(default)s, the processors here).",
    )
    check.add_argument(
        "--list",
        type=expanded,
        metavar="FILE",
        help="Write every problem as a JSON line of place, id, kind and reason.",
    )
    check.add_argument(
        "--fix",
        type=expanded,
        metavar="DIR",
        help="Write the good samples to this directory, and a recipe.yaml of them.",
    )


def _add_report(parts: Any) -> None:
    survey = add_part(
        parts,
        "report",
        _report,
        "Write one HTML page that shows what a recipe's samples are like: counts, lengths, image sizes, examples.",
        "mllm data report data_recipes/demo/instruct.yaml --out report.html",
    )
    survey.add_argument("recipe", type=expanded, metavar="RECIPE", help="A YAML file that names the sources.")
    survey.add_argument(
        "--out", type=expanded, default="report.html", metavar="FILE", help="The page to write (default: %(default)s)."
    )
    survey.add_argument(
        "--config",
        type=expanded,
        metavar="CONFIG",
        help="A training config, to show how many tiles and image tokens its model makes of the images, too.",
    )


def _add_convert(parts: Any) -> None:
    rewrite = add_part(
        parts,
        "convert",
        _convert,
        "Write samples in another format, which the name of the output tells: .jsonl, .parquet, or .json (LLaVA's).",
        "mllm data convert captions.tsv captions.parquet --reader captions --image-root images --embed-images",
    )
    rewrite.add_argument("source", type=expanded, help="A file, or a pattern in quotes such as 'shards/*.tar'.")
    rewrite.add_argument("out", type=expanded, help="The file to write.")
    rewrite.add_argument(
        "--reader",
        default="messages",
        help="What the records of the source mean (default: %(default)s); an unknown name lists the readers.",
    )
    rewrite.add_argument(
        "--image-root",
        type=expanded,
        default=".",
        metavar="DIR",
        help="Directory that image paths start from, for --embed-images (default: %(default)s).",
    )
    rewrite.add_argument("--embed-images", action="store_true", help="Put the image files into the parquet file.")


def _show(options: argparse.Namespace) -> None:
    settings = read_run(options.config)
    # A mistake in the config is said before torch is loaded.
    from rich.console import Console

    from mllm.checkpoint.start import load_processor
    from mllm.conversation.pair import sides_of
    from mllm.data.dataset import Mixture
    from mllm.data.example import render_example
    from mllm.data.recipe import load_recipe
    from mllm.data.show import coloured_tokens

    processor = load_processor(settings.model)
    mixture = Mixture(load_recipe(settings.data.recipe), settings.seed, settings.data.group_by_image)
    console = Console()
    for index in mixture.order(0)[: options.count]:
        for side in sides_of(mixture.samples[index]):
            example = render_example(side, processor, settings.data.max_length_tokens, settings.data.on_too_long)
            console.print(coloured_tokens(example, processor))


def _validate(options: argparse.Namespace) -> None:
    from mllm.console import report_console
    from mllm.data.validate import BY
    from mllm.outputs import check_file

    if options.jobs < 1:
        raise UserError(f"--jobs {options.jobs}: give at least 1")
    if options.list:
        check_file(Path(options.list), BY)
    findings = _findings(options)
    if options.list:
        findings.write_list(Path(options.list))
    videos = f" and {findings.videos:,} videos" if findings.videos else ""
    print(f"{findings.samples:,} samples with {findings.images:,} images{videos}: {len(findings.problems):,} problems")
    if findings.clipped:
        print(f"{findings.clipped:,} boxes reach beyond their image, and are cut at its edges")
    if findings.pairs.pairs:
        print(findings.pairs.summary(findings.bad_pairs))
    if findings.problems:
        report_console().print(findings.table())
        raise UserError(
            f"{options.recipe}: {len(findings.problems)} problems; --list writes them all, --fix a clean copy"
        )


def _findings(options: argparse.Namespace) -> "Findings":
    """What validation finds, with a line of progress on stderr while it looks."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from mllm.data.recipe import load_recipe
    from mllm.data.validate import validate

    check = _check_by(options.config) if options.config else None
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("reading")
        return validate(
            load_recipe(options.recipe),
            options.jobs,
            check,
            Path(options.fix) if options.fix else None,
            lambda f: progress.update(
                bar, description=f"{f.samples:,} samples, {f.images:,} images, {len(f.problems):,} problems"
            ),
        )


def _check_by(config: str) -> "Check":
    """A check that a sample's tokens and labels are those that a training config asks for."""
    settings = read_run(config)
    from mllm.checkpoint.start import load_processor
    from mllm.conversation.pair import sides_of
    from mllm.data.example import render_example

    processor = load_processor(settings.model)

    def check(sample: "Sample") -> None:
        for side in sides_of(sample):
            render_example(side, processor, settings.data.max_length_tokens, settings.data.on_too_long)

    return check


def _report(options: argparse.Namespace) -> None:
    from mllm.data.recipe import load_recipe
    from mllm.data.report.page import BY, write_page
    from mllm.data.report.survey import survey_recipe
    from mllm.outputs import check_file

    check_file(Path(options.out), BY, [options.recipe])
    recipe = load_recipe(options.recipe)
    planner = _planner_of(options.config) if options.config else None
    survey = survey_recipe(recipe)
    write_page(Path(options.out), recipe.name, survey, planner)
    print(f"saved {options.out}: {survey.samples:,} samples")


def _planner_of(config: str) -> "VisualPlanner":
    """The planner of the model that a training config is for."""
    from mllm.checkpoint.geometry import layout_of_settings

    _, planner = layout_of_settings(read_run(config).model)
    return planner


def _convert(options: argparse.Namespace) -> None:
    from mllm.data.convert import convert
    from mllm.data.recipe import SourceSettings

    source = SourceSettings(path=options.source, reader=options.reader, image_root=options.image_root)
    count = convert(source, Path(options.out), options.embed_images)
    print(f"saved {count:,} samples to {options.out}")
