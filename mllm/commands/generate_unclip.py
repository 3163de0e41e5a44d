"""`mllm generate vary`, `mix` and `edit`: what a decoder of image embeddings does."""

import argparse
from typing import Any

from mllm.commands.arguments import add_dtype, add_part, at_least_1, picture
from mllm.errors import UserError
from mllm.settings import expanded

A_DECODER = "A directory of a decoder, as `mllm generate train` makes of a config of kind: decoder."
BY = "mllm generate"


def add_unclip(parts: Any) -> None:
    """The subcommands that draw from the embeddings of images."""
    vary = _part(
        parts,
        "vary",
        _vary,
        "Draw variations of an image: what its CLIP embedding says stays, the rest changes. The noise behind the image is "
        "found by DDIM first.",
        "mllm generate vary runs/demo/decoder shape.png -n 8 --sheet variations.png",
    )
    vary.add_argument("image", type=expanded, metavar="IMAGE", help="The image.")
    vary.add_argument("-n", type=at_least_1, default=8, help="Number of variations (default: %(default)s).")
    vary.add_argument(
        "--eta",
        type=float,
        default=1.0,
        help="Share, from 0 to 1, of noise that is added on the way: 0 draws the image again (default: %(default)s).",
    )
    _add_drawing(vary, guidance=1.0)

    mix = _part(
        parts,
        "mix",
        _mix,
        "Draw what lies between two images, on the arc between their CLIP embeddings.",
        "mllm generate mix runs/demo/decoder one.png other.png --sheet between.png",
    )
    mix.add_argument("first", type=expanded, metavar="A", help="The image at one end.")
    mix.add_argument("last", type=expanded, metavar="B", help="The image at the other end.")
    mix.add_argument(
        "-n", type=_at_least_2, default=7, help="Number of pictures, ends included (default: %(default)s)."
    )
    mix.add_argument(
        "--noise",
        choices=["shared", "slerped"],
        default="shared",
        help="What all are drawn from: one noise, by the seed, or what lies between the noises that DDIM finds behind the "
        "two images (default: %(default)s).",
    )
    _add_drawing(mix, guidance=2.0)

    edit = _part(
        parts,
        "edit",
        _edit,
        "Change an image as one text differs from another: its CLIP embedding is turned towards the difference, and drawn "
        "from the noise that DDIM finds behind the image.",
        "mllm generate edit runs/demo/decoder shape.png --from 'a red circle' --to 'a blue circle' --sheet edits.png",
    )
    edit.add_argument("image", type=expanded, metavar="IMAGE", help="The image.")
    edit.add_argument("--from", dest="from_text", required=True, metavar="TEXT", help="What the image shows.")
    edit.add_argument("--to", dest="to_text", required=True, metavar="TEXT", help="What it should show instead.")
    edit.add_argument(
        "-n", type=_at_least_2, default=6, help="Number of pictures, from no change on (default: %(default)s)."
    )
    edit.add_argument(
        "--theta",
        type=_share,
        default=0.5,
        help="Share of the way to the difference that the last picture is at, from 0 to 1 (default: %(default)s).",
    )
    _add_drawing(edit, guidance=1.0)


def _part(parts: Any, name: str, run: Any, text: str, example: str) -> argparse.ArgumentParser:
    parser = add_part(parts, name, run, text, example)
    parser.add_argument("model", type=expanded, help=A_DECODER)
    return parser


def _add_drawing(parser: argparse.ArgumentParser, guidance: float) -> None:
    parser.add_argument(
        "--guidance",
        type=float,
        default=guidance,
        metavar="W",
        help="Factor w of ε(nothing) + w (ε(embedding) − ε(nothing)); above 1 the image that noise was found behind isn't "
        "drawn again exactly (default: %(default)s).",
    )
    parser.add_argument("--steps", type=int, default=50, help="Number of steps from noise (default: %(default)s).")
    parser.add_argument(
        "--seed", type=int, default=0, help="Seed of the noise; the next picture has the next (default: 0)."
    )
    parser.add_argument(
        "--device", help="Where the model runs, such as cpu or cuda:0. A GPU if there is one, by default."
    )
    add_dtype(parser)
    parser.add_argument(
        "--sheet", type=picture, required=True, metavar="OUT.png", help="Draw the pictures to this file."
    )


def _opened(options: argparse.Namespace) -> Any:
    from mllm.generation.opening import load_generator
    from mllm.generation.unclip_generators import Decoder
    from mllm.outputs import check_file

    check_file(options.sheet, f"{BY} {options.generate_command}")
    decoder = load_generator(options.model, options.device, options.dtype)
    if not isinstance(decoder, Decoder):
        raise UserError(
            f"{options.model} is of kind {decoder.config.kind} and draws from no image embedding; name a decoder, "
            "which `mllm generate train` makes of a config of kind: decoder"
        )
    return decoder


def _how(options: argparse.Namespace, eta: float = 0.0) -> Any:
    from mllm.generation.sampler import Sampling

    return Sampling(steps=options.steps, guidance=options.guidance, eta=eta)


def _vary(options: argparse.Namespace) -> None:
    from mllm.generation.unclip import vary
    from mllm.media.decode import read_image

    decoder, image = _opened(options), read_image(options.image)
    seeds = [options.seed + number for number in range(options.n)]
    pictures = vary(decoder, image, seeds, _how(options, options.eta))
    _save(options, [image, *pictures], ["the image", *(f"seed {seed}" for seed in seeds)])


def _mix(options: argparse.Namespace) -> None:
    from mllm.generation.unclip import mix
    from mllm.media.decode import read_image

    decoder, first, last = _opened(options), read_image(options.first), read_image(options.last)
    shares = _shares(1.0, options.n)
    seed = options.seed if options.noise == "shared" else None
    pictures = mix(decoder, (first, last), shares, _how(options), seed)
    _save(options, [first, *pictures, last], ["A", *(f"{share:.2f}" for share in shares), "B"])


def _edit(options: argparse.Namespace) -> None:
    from mllm.generation.unclip import edit
    from mllm.media.decode import read_image

    decoder, image = _opened(options), read_image(options.image)
    shares = _shares(options.theta, options.n)
    pictures = edit(decoder, image, (options.from_text, options.to_text), shares, _how(options))
    _save(options, [image, *pictures], ["the image", *(f"θ {share:.2f}" for share in shares)])


def _save(options: argparse.Namespace, pictures: list[Any], labels: list[str]) -> None:
    from mllm.generation.pictures import save_sheet

    save_sheet(pictures, labels, min(len(pictures), 12), options.sheet, f"{BY} {options.generate_command}")
    print(f"{len(pictures)} pictures are drawn on {options.sheet}")


def _shares(last: float, count: int) -> list[float]:
    return [last * place / (count - 1) for place in range(count)]


def _at_least_2(text: str) -> int:
    """Parse a whole number from 2 on; argparse shows the error as one line."""
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 2 on")
    return int(text)


def _share(text: str) -> float:
    """Parse a number from 0 to 1; argparse shows the error as one line."""
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 1")
    return share
