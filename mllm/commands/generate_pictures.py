"""What commands that draw pictures and have them judged take alike."""

import argparse
import math
from typing import TYPE_CHECKING, Any

from mllm.commands.arguments import A_MODEL, at_least_1
from mllm.errors import UserError
from mllm.settings import expanded

if TYPE_CHECKING:
    from mllm.generation.generator import Generator
    from mllm.generation.judging.drawing import Paint
    from mllm.generation.judging.drawn import Questions
    from mllm.generation.judging.judges import Judge

A_GENERATOR = "A directory of a generator, ours or Stable Diffusion's, or of a run that trained one"


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How pictures are drawn; `paint_with` reads it."""
    parser.add_argument(
        "--steps", type=at_least_1, default=25, metavar="N", help="Number of denoising steps (default: %(default)s)."
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="Seed of all pictures' noise (default: %(default)s)."
    )
    parser.add_argument(
        "--batch-size",
        type=at_least_1,
        default=32,
        metavar="N",
        help="Number of pictures that are drawn at once (default: %(default)s).",
    )


def add_own_parts(parser: argparse.ArgumentParser) -> None:
    """What was learned beside a generator; `open_generator` reads it."""
    parser.add_argument(
        "--concept",
        type=expanded,
        action="append",
        default=[],
        metavar="FILE",
        help="A word that `mllm generate invert` or diffusers learned, to be known in prompts. Repeatable.",
    )
    parser.add_argument(
        "--lora", type=expanded, metavar="FILE", help="An adapter that `mllm generate lora` or diffusers learned."
    )


def open_generator(options: argparse.Namespace, path: str) -> "Generator":
    """The generator with the concepts and the adapter that the options name."""
    from mllm.generation.opening import load_generator

    generator = load_generator(path)
    if options.concept:
        from mllm.generation.concept import with_concept

        for concept in options.concept:
            generator = with_concept(generator, concept)
    if options.lora:
        from mllm.generation.lora import load_lora

        load_lora(generator, options.lora)
    return generator


def own_parts(options: argparse.Namespace) -> dict[str, object]:
    """What pictures were drawn with beside the generator, for their provenance."""
    return {name: given for name in ("concept", "lora") if (given := getattr(options, name))}


def add_judges(parser: argparse.ArgumentParser) -> None:
    """Who judges; `open_judges` reads it."""
    group = parser.add_argument_group("who judges")
    group.add_argument(
        "--rule",
        action="append",
        default=[],
        metavar="FILE.py:NAME",
        help="A function of (caption, attempt) whose attempt.images ends with the picture: a number, or several by name, as "
        "rewards are. The code in it is run as it is. Repeatable.",
    )
    group.add_argument(
        "--judge", type=expanded, metavar="MODEL", help=f"{A_MODEL}: a multimodal LLM that is asked --questions."
    )
    group.add_argument(
        "--questions",
        type=expanded,
        metavar="FILE",
        help='JSON lines {"prompt", "questions": [{"question", "answer", "type"}]}: what --judge is asked about each '
        "prompt's pictures.",
    )
    group.add_argument(
        "--vqa-score",
        action="store_true",
        help="Let --judge also say how likely yes is to 'Does this figure show …?' (VQAScore).",
    )


def questions_of(options: argparse.Namespace) -> "Questions":
    from mllm.generation.judging.drawn import read_questions

    return read_questions(options.questions) if options.questions else {}


def open_judges(options: argparse.Namespace, questions: "Questions") -> "list[Judge]":
    """The judges that the options name. Raises UserError for a judge that has nothing to ask."""
    from mllm.generation.judging.judges import Asking, Likelihood, Rule

    judges: list[Any] = [Rule(function) for function in options.rule]
    if options.judge is None:
        if options.vqa_score:
            raise UserError("--vqa-score asks a multimodal LLM; name it with --judge")
        return judges
    if not questions and not options.vqa_score:
        raise UserError("--judge asks questions; give them with --questions, or --vqa-score")
    from mllm.checkpoint.load import load

    model, processor = load(options.judge)
    if questions:
        judges.append(Asking(model, processor, questions))
    if options.vqa_score:
        judges.append(Likelihood(model, processor))
    return judges


def finite(text: str) -> float:
    """Parse a finite number; argparse shows the error as one line."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} is no finite number")
    return number


def paint_with(generator: "Generator", options: argparse.Namespace, guidance: float) -> "Paint":
    """Draws with the generator as the options say."""
    from mllm.generation.pictures import draw_pictures
    from mllm.generation.sampler import Sampling

    how = Sampling(steps=options.steps, guidance=guidance)
    return lambda prompts, seeds: draw_pictures(generator, prompts, seeds, how, batch_size=options.batch_size)
