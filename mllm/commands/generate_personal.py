"""`mllm generate invert | lora`: a generator made one's own, as a new word or as an adapter."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm.commands.arguments import A_DUAL_ENCODER, add_part, at_least_1
from mllm.commands.clip_arguments import A_FILE_OF_PAIRS, add_image_root
from mllm.commands.generate_pictures import A_GENERATOR, add_sampling, finite, paint_with
from mllm.console import report_console
from mllm.errors import UserError
from mllm.settings import expanded

if TYPE_CHECKING:
    from mllm.generation.personal_settings import ConceptSettings

BY = "mllm generate invert"
TEMPLATES = {
    "object": (
        "a photo of a {}",
        "a photo of the {}",
        "a picture of one {}",
        "a close photo of a {}",
        "a bright photo of the {}",
        "a drawing of a {}",
        "a rendering of the {}",
        "a good picture of a {}",
    ),
    "style": (
        "a painting in the style of {}",
        "a picture in the style of {}",
        "a drawing in the style of {}",
        "a close painting in the style of {}",
        "a bright picture in the style of {}",
        "a rendering in the style of {}",
    ),
}


def add_personal(parts: Any) -> None:
    _add_invert(parts)
    _add_lora(parts)


def _add_invert(parts: Any) -> None:
    parser = add_part(
        parts,
        "invert",
        _invert,
        "Learn a new word from three to five images of a thing or of a style (textual inversion). The generator stays as it "
        "is; what is learned is a file that diffusers opens, too. The same command goes on with a run that was stopped.",
        "mllm generate invert runs/shapes/final mug1.png mug2.png mug3.png --token '<mug>' --initializer mug \\",
        "    --clip runs/demo/clip/final --score-prompt 'a {} on a table'",
    )
    parser.add_argument("model", type=expanded, help=f"{A_GENERATOR}; it draws from words.")
    parser.add_argument("images", type=expanded, nargs="+", metavar="IMAGES", help="Image files, or a folder of them.")
    parser.add_argument("--token", required=True, metavar="WORD", help="The new word, such as '<mug>'.")
    parser.add_argument("--initializer", metavar="WORDS", help="Words to start from. The mean of all words by default.")
    parser.add_argument(
        "--vectors",
        type=at_least_1,
        default=1,
        metavar="N",
        help="Number of vectors that the word stands for (default: %(default)s).",
    )
    parser.add_argument(
        "--kind",
        choices=list(TEMPLATES),
        default="object",
        help="Which prompts the images are learned with, of a thing or of a style (default: %(default)s).",
    )
    parser.add_argument(
        "--template",
        action="append",
        default=[],
        metavar="TEXT",
        help="A prompt with {} for the word, in place of those of --kind, as a small generator's captions are. Repeatable.",
    )
    _add_training(parser, "runs/concept", 2000, 5e-3)
    scores = parser.add_argument_group("scores")
    scores.add_argument(
        "--clip",
        type=expanded,
        metavar="DIR",
        help=f"Draw pictures when it is learned, and score them by this one. {A_DUAL_ENCODER}",
    )
    scores.add_argument(
        "--score-prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="A prompt with {} for the word, such as 'a {} on a table', whose words pictures have to show. Repeatable.",
    )
    scores.add_argument(
        "-n", type=at_least_1, default=16, metavar="N", help="Number of pictures of each prompt (default: %(default)s)."
    )
    scores.add_argument(
        "--guidance", type=finite, default=3.0, metavar="W", help="Weight of the prompt (default: %(default)s)."
    )
    add_sampling(parser)


def _add_lora(parts: Any) -> None:
    parser = add_part(
        parts,
        "lora",
        _lora,
        "Learn an adapter of a generator's attention from a few images with prompts (LoRA). The generator stays as it is; "
        "what is learned is a file that diffusers opens, too. The same command goes on with a run that was stopped.",
        "mllm generate lora runs/shapes/final mug1.png mug2.png --prompt 'a photo of a mug' --rank 4",
    )
    parser.add_argument("model", type=expanded, help=f"{A_GENERATOR}; it draws from words.")
    parser.add_argument("images", type=expanded, nargs="*", metavar="IMAGES", help="Image files, or a folder of them.")
    parser.add_argument("--prompt", metavar="TEXT", help="The prompt of all IMAGES.")
    parser.add_argument(
        "--pairs", type=expanded, metavar="FILE", help=f"{A_FILE_OF_PAIRS}, in place of IMAGES and --prompt."
    )
    add_image_root(parser, "--pairs")
    parser.add_argument(
        "--rank", type=at_least_1, default=4, metavar="N", help="Rank of the updates (default: %(default)s)."
    )
    _add_training(parser, "runs/lora", 1000, 1e-4)
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="Seed of all that is drawn (default: %(default)s)."
    )


def _add_training(parser: argparse.ArgumentParser, run_dir: str, steps: int, lr: float) -> None:
    group = parser.add_argument_group("training")
    group.add_argument(
        "--run-dir", type=expanded, default=run_dir, metavar="DIR", help="The run's directory (default: %(default)s)."
    )
    group.add_argument(
        "--train-steps", type=at_least_1, default=steps, metavar="N", help="Steps of training (default: %(default)s)."
    )
    group.add_argument("--lr", type=finite, default=lr, metavar="RATE", help="Learning rate (default: %(default)s).")
    group.add_argument(
        "--images-a-step", type=at_least_1, default=4, metavar="N", help="Images of a step (default: %(default)s)."
    )


def _training(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that both kinds of run share."""
    train = {"global_batch_size": options.images_a_step, "micro_batch_size": options.images_a_step, "dtype": "auto"}
    train |= {"epochs": float(options.train_steps), "max_steps": options.train_steps}
    return {
        "run_dir": options.run_dir,
        "seed": options.seed,
        "model": options.model,
        "optim": {"lr": options.lr, "schedule": "constant", "warmup_ratio": 0.0},
        "train": train,
    }


def _files(given: Sequence[str]) -> list[str]:
    """Image files; a folder stands for those in it."""
    from mllm.inference.dual_features import image_files

    return [str(file) for one in given for file in (image_files(one) if Path(one).is_dir() else [one])]


def _invert(options: argparse.Namespace) -> None:
    from mllm.generation.personal_settings import ConceptSettings
    from mllm.settings import validate_settings

    values = _training(options) | {"images": _files(options.images), "token": options.token, "vectors": options.vectors}
    templates = options.template or TEMPLATES[options.kind]
    values |= {"initializer": options.initializer or "", "templates": list(templates)}
    settings = validate_settings(ConceptSettings, values, BY)
    _check_scores(options)
    from mllm.generation.concept_training import learn_concept

    final = learn_concept(settings)
    print(f"saved {final}")
    if options.clip and final is not None:
        _score(options, settings, final)


def _check_scores(options: argparse.Namespace) -> None:
    """Raise UserError, before anything is learned, for scores that can't be computed."""
    if options.score_prompt and not options.clip:
        raise UserError("--score-prompt: name who scores with --clip")
    if options.clip and not options.score_prompt:
        raise UserError(
            "--clip scores prompts around the new word; give some, such as --score-prompt 'a {} on a table'"
        )
    for prompt in options.score_prompt:
        if prompt.count("{}") != 1 or not prompt.replace("{}", "").strip():
            raise UserError(f"--score-prompt {prompt!r}: give {{}} once, and words around it that a picture can show")


def _score(options: argparse.Namespace, settings: "ConceptSettings", final: Path) -> None:
    from rich.table import Table

    from mllm.files import hash_files
    from mllm.generation.concept import FILE, with_concept
    from mllm.generation.judging.drawing import PictureFolder
    from mllm.generation.opening import load_generator
    from mllm.generation.personal_scores import score_concept
    from mllm.inference.dual_features import load_encoder
    from mllm.inference.text_side import check_reads_end

    encoder = load_encoder(options.clip)
    check_reads_end(encoder.model.config, encoder.tokenizer, options.clip)
    generator = with_concept(load_generator(options.model), final)
    made = {"model": options.model, "concept": hash_files([final / FILE]), "guidance": options.guidance}
    made |= {"steps": options.steps, "base_seed": options.seed}
    rows = score_concept(
        encoder,
        PictureFolder(final.parent / "pictures", made, BY),
        paint_with(generator, options, options.guidance),
        settings.token,
        settings.images,
        settings.templates[0].replace("{}", settings.token),
        [prompt.replace("{}", settings.token) for prompt in options.score_prompt],
        settings.initializer,
        options.n,
        options.seed,
        options.batch_size,
    )
    table = Table("", "CLIP-I to the images", "CLIP-T to the prompts")
    for row in rows:
        table.add_row(row.name, f"{row.likeness:.3f}", f"{row.adherence:.3f}")
    report_console().print(table)


def _lora(options: argparse.Namespace) -> None:
    from mllm.generation.judging.drawn import read_pictures
    from mllm.generation.personal_settings import LoraSettings
    from mllm.settings import validate_settings

    if (options.pairs is None) == (not options.images):
        raise UserError("give IMAGES with --prompt, or --pairs")
    if options.pairs:
        pairs = read_pictures(options.pairs, options.image_root)
        images, captions = [str(pair.image) for pair in pairs], [pair.caption for pair in pairs]
    else:
        if not options.prompt:
            raise UserError("--prompt: say what IMAGES show, such as --prompt 'a photo of a mug'")
        images = _files(options.images)
        captions = [options.prompt] * len(images)
    values = _training(options) | {"images": images, "captions": captions, "rank": options.rank}
    settings = validate_settings(LoraSettings, values, "mllm generate lora")
    from mllm.generation.lora import train_lora

    print(f"saved {train_lora(settings)}")
