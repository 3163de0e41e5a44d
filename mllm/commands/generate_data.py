"""`mllm generate data`: pictures of a generator, as far as they are judged right, as data for a multimodal LLM."""

import argparse
from pathlib import Path
from typing import Any

from mllm.commands.arguments import add_part, at_least_1
from mllm.commands.generate_pictures import (
    A_GENERATOR,
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
from mllm.errors import UserError
from mllm.settings import expanded


def add_data(parts: Any) -> None:
    parser = add_part(
        parts,
        "data",
        _make,
        "Draw pictures of prompts, let them be judged, and write captions and questions of those that are right as samples "
        "to train on, with a recipe. Every picture keeps its line, with the verdict; a run that was stopped goes on.",
        "mllm generate data runs/shapes/final runs/drawn_data --questions questions.jsonl --kept 20 \\",
        "    --rule data_recipes/demo/flat_drawings.py:judge --least judge/both=1",
        "mllm generate data runs/shapes/final runs/drawn_data --questions questions.jsonl --judge runs/demo/stage2 \\",
        "    --least asked=1",
    )
    parser.add_argument("model", type=expanded, help=f"{A_GENERATOR}.")
    parser.add_argument("out", type=expanded, help="The directory to write.")
    parser.add_argument(
        "--prompts",
        type=expanded,
        metavar="FILE",
        help="Prompts, one a line, or JSON lines with prompt. Those of --questions by default.",
    )
    parser.add_argument(
        "-n", type=at_least_1, default=20, metavar="N", help="Number of tries of each prompt (default: %(default)s)."
    )
    parser.add_argument(
        "--kept",
        type=at_least_1,
        metavar="N",
        help="Leave a prompt once this many are kept. All tries are made by default.",
    )
    parser.add_argument(
        "--least",
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help="Keep a picture only if what is judged is at least this: judge/both=1 of a rule `judge`, asked=0.8 or "
        "vqa_score=0.5 of --judge. Repeatable; by default every picture is kept.",
    )
    parser.add_argument(
        "--guidance", type=finite, default=3.0, metavar="W", help="Weight of the prompt (default: %(default)s)."
    )
    add_sampling(parser)
    add_own_parts(parser)
    add_judges(parser)


def _make(options: argparse.Namespace) -> None:
    from rich.progress import track

    from mllm.generation.circle import BY, Plan, fill, finish
    from mllm.generation.judging.drawing import PictureFolder
    from mllm.generation.judging.drawn import read_prompts
    from mllm.generation.judging.judges import together

    questions = questions_of(options)
    prompts = read_prompts(options.prompts) if options.prompts else list(questions)
    if not prompts:
        raise UserError("nothing to draw: give --prompts or --questions")
    least = _thresholds(options.least)
    plan = Plan(prompts, options.n, options.kept, least, options.seed, options.batch_size)
    judges = open_judges(options, questions)
    generator = open_generator(options, options.model)
    noted = {"model": options.model, "guidance": options.guidance, "steps": options.steps} | own_parts(options)
    who = {"rule": options.rule, "judge": options.judge, "questions": options.questions, "vqa_score": options.vqa_score}
    made = noted | {"base_seed": options.seed, "least": least} | who
    folder = PictureFolder(Path(options.out), made, BY)
    batches = fill(folder, paint_with(generator, options, options.guidance), together(judges), plan, noted)
    for _ in track(batches, "drawing and judging", total=None):
        pass
    print(finish(folder, plan, questions, options.model, made))
    print(f"saved {options.out}")


def _thresholds(given: list[str]) -> dict[str, float]:
    least = {}
    for one in given:
        name, _, number = one.rpartition("=")
        try:
            least[name] = finite(number)
        except argparse.ArgumentTypeError:
            name = ""
        if not name:
            raise UserError(f"--least {one}: give NAME=NUMBER, such as asked=0.8")
    return least
