"""`mllm generate`: train a generator of pictures, and draw with one."""

import argparse
from pathlib import Path
from typing import Any

from mllm.commands.arguments import add_config, add_dtype, add_part, add_parts, at_least_1, one_of, picture
from mllm.commands.generate_judge import add_judging
from mllm.commands.generate_unclip import add_unclip
from mllm.errors import UserError
from mllm.launch import launched_rank
from mllm.settings import command_of, expanded, expanded_path, read_values

A_GENERATOR = "A generator's directory: of a run of `mllm generate train`, or of Stable Diffusion in diffusers' layout."
BY = "mllm generate sample"


def add(parser: argparse.ArgumentParser) -> None:
    """The subcommands of `mllm generate`; each parser's default `run` does the work."""
    parts = add_parts(
        parser,
        "generate_command",
        "Train a generator of pictures, and draw with one.",
        "mllm generate sample runs/demo/diffusion 'a red circle' -n 16 --sheet out.png",
    )
    _add_training(parts)
    _add_sampling(parts)
    add_unclip(parts)
    add_judging(parts)


def _add_training(parts: Any) -> None:
    train = add_part(
        parts,
        "train",
        _train,
        "Train a diffusion model that draws from text, or an autoencoder for one, as a YAML config says. The same command "
        "goes on with a run that was stopped.",
        "mllm generate train train/configs/demo_diffusion.yaml --set train.epochs=2",
        "deepspeed train/diffusion.py --config train/configs/demo_diffusion.yaml",
    )
    add_config(train)


def _add_sampling(parts: Any) -> None:
    sample = add_part(
        parts,
        "sample",
        _sample,
        "Draw pictures from prompts. A picture is a function of the model, its prompt, its seed and the options.",
        "mllm generate sample runs/demo/diffusion 'a red circle' -n 16 --guidance 3 --seed 0 --sheet out.png",
        "mllm generate sample runs/demo/diffusion --prompts prompts.txt -n 4 --out pictures",
    )
    sample.add_argument("model", type=expanded, help=A_GENERATOR)
    sample.add_argument(
        "prompt", nargs="*", metavar="PROMPT", help="What to draw, in front of the options. Several are drawn in turn."
    )
    sample.add_argument(
        "--prior",
        type=expanded_path,
        metavar="DIRECTORY",
        help="The prior of a decoder that has none: of a run of kind prior, Kandinsky 2.2's, or Karlo for SD-unCLIP.",
    )
    sample.add_argument("--prompts", type=expanded_path, metavar="FILE", help="A file of prompts, one a line.")
    sample.add_argument("-n", type=at_least_1, default=4, help="Number of pictures a prompt (default: %(default)s).")
    sample.add_argument(
        "--index",
        type=expanded,
        metavar="DIRECTORY",
        help="The index of `mllm clip index` in which a generator of kind retrieval looks for neighbours of a prompt. It may "
        "be another than that of the training.",
    )
    add_sampling(sample)
    sample.add_argument("--sheet", type=picture, metavar="OUT.png", help="Draw all pictures on one sheet in this file.")
    sample.add_argument(
        "--out", type=expanded_path, metavar="DIRECTORY", help="Write every picture, as PNG, to this new directory."
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How pictures are drawn; `sampling_of` and `load_drawn_with` read it."""
    parser.add_argument(
        "--guidance",
        type=float,
        default=3.0,
        metavar="W",
        help="Factor w of ε(nothing) + w (ε(prompt) − ε(nothing)): 0 draws from nothing, 1 from the prompt, more "
        "exaggerates it (default: %(default)s).",
    )
    parser.add_argument(
        "--rescale",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="Share, from 0 to 1, of a guided step that is brought back to the contrast of an unguided one "
        "(default: %(default)s).",
    )
    parser.add_argument("--steps", type=int, default=25, help="Number of steps from noise (default: %(default)s).")
    parser.add_argument(
        "--sampler",
        choices=["ddim", "ddpm", "dpm"],
        default="ddim",
        help="How steps are made: ddim and dpm (DPM-Solver++) add no noise, ddpm does (default: %(default)s).",
    )
    parser.add_argument(
        "--eta",
        type=float,
        default=0.0,
        help="Share, from 0 to 1, of ddpm's noise that ddim adds (default: %(default)s).",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="Seed of a prompt's first picture; the next has the next (default: 0)."
    )
    parser.add_argument(
        "--batch-size", type=at_least_1, default=16, help="Number of pictures drawn at once (default: %(default)s)."
    )
    parser.add_argument(
        "--device", help="Where the model runs, such as cpu or cuda:0. A GPU if there is one, by default."
    )
    add_dtype(parser)


def _train(options: argparse.Namespace) -> None:
    from mllm.generation.kinds import read_kind, train_generator

    config = one_of(options, "config")
    if config is None:
        raise UserError("give a config: mllm generate train CONFIG.yaml")
    values = read_values(config, options.overrides)
    command = command_of(values)
    if command not in (None, "mllm generate train"):
        raise UserError(f"{config} is for another command: {command} {config}")
    final = train_generator(read_kind(values, config))
    if final is not None and launched_rank() == 0:
        print(f"the trained model is {final}")


def _sample(options: argparse.Namespace) -> None:
    from mllm.outputs import check_directory, check_file

    prompts = _prompts(options)
    if options.sheet is None and options.out is None:
        raise UserError("name where pictures go: --sheet OUT.png, --out DIRECTORY or both")
    if options.sheet is not None:
        check_file(options.sheet, BY)
    if options.out is not None:
        check_directory(options.out, BY)
    from mllm.generation.extra import check_diffusers

    check_diffusers()
    from mllm.generation.opening import load_drawer

    generator = load_drawer(options.model, options.prior, options.index, options.device, options.dtype)
    texts = [prompt for prompt in prompts for _ in range(options.n)]
    seeds = [options.seed + number for _ in prompts for number in range(options.n)]
    pictures = drawn(options, generator, texts, seeds)
    _write(options, pictures, texts, seeds)


def drawn(options: argparse.Namespace, generator: Any, texts: list[str], seeds: list[int]) -> list[Any]:
    """Draw a picture a text and seed as the options of `add_sampling` say, with a bar of progress on a terminal."""
    from tqdm import tqdm

    from mllm.generation.pictures import draw_pictures

    how = sampling_of(options)
    with tqdm(total=how.steps * len(texts), unit="step", disable=None) as bar:
        return draw_pictures(
            generator, texts, seeds, how, options.batch_size, lambda done: bar.update(done - bar.n) and None
        )


def sampling_of(options: argparse.Namespace) -> Any:
    """Read the options of `add_sampling` as `Sampling`."""
    from mllm.generation.sampler import Sampling

    return Sampling(options.steps, options.sampler, options.guidance, options.rescale, options.eta)


def _prompts(options: argparse.Namespace) -> list[str]:
    prompts = list(options.prompt)
    if options.prompts is not None:
        try:
            lines = options.prompts.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{options.prompts} can't be read: {error}") from None
        prompts += [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UserError("give a prompt, such as 'a red circle', or a file of them by --prompts FILE")
    return prompts


def _write(options: argparse.Namespace, pictures: list[Any], texts: list[str], seeds: list[int]) -> None:
    """Write pictures to a directory, with a list of their prompts, and to a sheet, as the options say."""
    import json

    from mllm.files import atomic_directory
    from mllm.generation.pictures import save_sheet

    if options.out is not None:
        with atomic_directory(options.out, BY) as directory:
            lines = []
            for number, (image, text, seed) in enumerate(zip(pictures, texts, seeds, strict=True)):
                name = f"{number:05d}.png"
                image.save(Path(directory) / name)
                lines.append(json.dumps({"image": name, "caption": text, "seed": seed}, ensure_ascii=False))
            (Path(directory) / "pictures.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{len(pictures)} pictures are in {options.out}, with pictures.jsonl")
    if options.sheet is not None:
        columns = options.n if len(pictures) > options.n else min(options.n, 8)
        save_sheet(pictures, texts, min(columns, 16), options.sheet, BY)
        print(f"{len(pictures)} pictures are drawn on {options.sheet}")
