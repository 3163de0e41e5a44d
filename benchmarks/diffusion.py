"""A training step and a drawing of ours and of diffusers': the same U-Net, weights, pictures, captions and precision.

    python benchmarks/diffusion.py
    python benchmarks/diffusion.py --latents

diffusers' step is that of its `train_text_to_image.py` with `--use_ema`: pictures are decoded and scaled, captions go through
the text side and, with --latents, pictures through the autoencoder in every step; AdamW, clipped gradient, `EMAModel`. Ours
is the loop's own step over rows that were computed once, the averages included; making the rows is not counted, and said.
Drawing (with --latents) is diffusers' StableDiffusionPipeline with DDIM beside `draw_pictures`, at guidance 3. Peak memory is
a whole process's; what the imports alone take is said beside it.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from contenders import Contender, serve
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline
from diffusers.training_utils import EMAModel
from measuring import machine, markdown_table, peak_rss_bytes, spread
from PIL import Image, ImageDraw
from torch.nn import functional

from mllm.contrastive.pairs import Pair
from mllm.generation.codec import Codec, LatentCodec, PixelCodec, from_pictures
from mllm.generation.data import Captioned, CaptionedRows, PictureLatents
from mllm.generation.denoiser import Denoiser, build_denoiser
from mllm.generation.generator import Generator, GeneratorConfig
from mllm.generation.pictures import draw_pictures
from mllm.generation.sampler import Sampling
from mllm.generation.schedule import Schedule
from mllm.generation.settings import DenoiserSettings
from mllm.generation.task import DiffusionTask, Dropping
from mllm.generation.text_side import TextSide, load_text_side
from mllm.media.decode import read_image
from mllm.training.averages import Averages
from mllm.training.build_engine import start_engine
from mllm.training.settings import EngineSettings, LoopSettings, OptimizerSettings

CLIP = Path(__file__).parents[1] / "data_recipes" / "demo" / "clip"
COLOURS = ("red", "blue", "green", "black", "gray", "brown", "teal", "yellow")
SHAPES = {"circle": ImageDraw.ImageDraw.ellipse, "rectangle": ImageDraw.ImageDraw.rectangle}
LR, WEIGHT_DECAY, GUIDANCE, TOKENS = 1e-4, 1e-2, 3.0, 8
PEER, OURS = "diffusers", "ours"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", action="store_true", help="draw in latents of a small autoencoder, not in pixels")
    parser.add_argument("--size", type=int, default=32, help="side of pictures, in pixels")
    parser.add_argument("--widths", type=int, nargs="+", default=(96, 128))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--drawn", type=int, default=16, help="pictures drawn a round, with --latents")
    parser.add_argument("--sampling-steps", type=int, default=15)
    parser.add_argument("--dtype", choices=("float32", "autocast"), default="float32")
    parser.add_argument("--steps", type=int, default=3, help="timed steps a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        make = _peer if options.worker["who"] == PEER else _ours
        imports = peak_rss_bytes()
        serve(lambda: _rounds(*make(options, Path(options.worker["folder"])), options.steps, imports))
        return
    _report(options, _race(options))


def _race(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {PEER: [], OURS: []}
    with TemporaryDirectory() as folder:
        _write_pictures(Path(folder), options.pictures)
        contenders = {
            name: Contender(
                __file__,
                [*sys.argv[1:], "--worker", json.dumps({"who": name, "folder": folder})],
                Path(folder) / f"{name}.log",
            )
            for name in found
        }
        for _ in range(options.rounds):
            for name, contender in contenders.items():
                found[name].append(contender.run())
                print(f"{name}: {json.dumps(found[name][-1])}", flush=True)
        for contender in contenders.values():
            contender.close()
    return found


def _report(options: argparse.Namespace, found: dict[str, list[dict[str, Any]]]) -> None:
    grid = "latents" if options.latents else "blocks of pixels"
    print(f"\n{machine()}, {options.dtype}; U-Net of {list(options.widths)}, {options.size} px in {grid}\n")
    rows = []
    for what, count in (("step", options.batch), ("drawing", options.drawn)):
        seconds = {name: [s for r in rounds for s in r[what]] for name, rounds in found.items()}
        if not seconds[OURS]:
            continue
        rate = {name: count / median(taken) for name, taken in seconds.items()}
        for name in found:
            against = f"{rate[name] / rate[PEER]:.2f}"
            rows.append([what, name, f"{rate[name]:.2f}", against, f"{spread(seconds[name]):.2f}"])
    print(markdown_table(["", "", "pictures/s", f"/ {PEER}", "spread"], rows))
    peak = {name: rounds[-1]["peak_bytes"] for name, rounds in found.items()}
    own = {name: peak[name] - rounds[-1]["imports_bytes"] for name, rounds in found.items()}
    print(f"\npeak memory {peak[OURS] / 2**30:.2f} of {peak[PEER] / 2**30:.2f} GiB ({peak[OURS] / peak[PEER]:.2f})")
    print(f"without imports {own[OURS] / 2**30:.2f} of {own[PEER] / 2**30:.2f} GiB ({own[OURS] / own[PEER]:.2f})")
    print(f"rows computed once in {found[OURS][0]['prepared_s']:.1f} s")


def _rounds(
    step: Callable[[], float], draw: Callable[[], Any] | None, prepared_s: float, steps: int, imports: int
) -> Callable[[], dict[str, Any]]:
    def timed(run: Callable[[], Any], count: int) -> list[float]:
        seconds = []
        for _ in range(1 + count):  # the first of a round isn't counted
            started = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - started)
        return seconds[1:]

    def run() -> dict[str, Any]:
        taken = {"step": timed(step, steps), "drawing": [] if draw is None else timed(draw, 1)}
        return taken | {"prepared_s": prepared_s, "imports_bytes": imports}

    return run


def _write_pictures(folder: Path, count: int) -> None:
    """Coloured shapes of 64 pixels on white, and `pairs.json` of their captions."""
    rng, pairs = random.Random(0), []
    for number in range(count):
        colour, shape = rng.choice(COLOURS), rng.choice(list(SHAPES))
        image = Image.new("RGB", (64, 64), "white")
        left, top = rng.randrange(40), rng.randrange(40)
        SHAPES[shape](ImageDraw.Draw(image), (left, top, left + 20, top + 20), fill=colour)
        image.save(folder / f"{number}.png")
        pairs.append((f"{number}.png", f"a {colour} {shape}"))
    (folder / "pairs.json").write_text(json.dumps(pairs))


def _pairs(folder: Path) -> list[Pair]:
    return [Pair(folder / name, caption) for name, caption in json.loads((folder / "pairs.json").read_text())]


def _autoencoder() -> Any:
    """A small autoencoder of factor 4, of random weights."""
    torch.manual_seed(1)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    made = AutoencoderKL(block_out_channels=(32, 64, 64), norm_num_groups=16, force_upcast=False, **blocks)
    return made.eval().requires_grad_(False)


def _parts(options: argparse.Namespace) -> tuple[Codec, TextSide, Denoiser, Schedule]:
    codec: Codec = LatentCodec(_autoencoder(), options.size) if options.latents else PixelCodec(options.size, 4)
    text = load_text_side(CLIP, TOKENS)
    torch.manual_seed(0)
    denoiser = build_denoiser(
        DenoiserSettings(widths=tuple(options.widths)), codec.shape[0], codec.shape[1], text.width
    )
    return codec, text, denoiser, Schedule()


def _ours(options: argparse.Namespace, folder: Path) -> tuple[Callable[[], float], Callable[[], Any] | None, float]:
    codec, text, denoiser, schedule = _parts(options)
    started = time.perf_counter()
    pairs = Captioned.of(_pairs(folder))
    rows = CaptionedRows(pairs, text, PictureLatents(pairs.images, codec, folder / "cache"), folder / "cache")
    prepared_s = time.perf_counter() - started
    optim = OptimizerSettings(lr=LR, weight_decay=WEIGHT_DECAY, schedule="constant", warmup_ratio=0)
    loop = LoopSettings(global_batch_size=options.batch, micro_batch_size=options.batch, dtype=options.dtype)
    engine = start_engine(EngineSettings(kind="torch"), optim, loop)(denoiser)
    task = DiffusionTask(rows, schedule, Dropping(0.1), None, options.batch, options.batch, seed=0)
    averages, number = Averages(engine.module, 0.9999), 0

    def step() -> float:
        nonlocal number
        (micro_batch,) = task.window(number, 0, 1).micro_batches
        with engine.autocast():
            loss = task.loss(engine.module, _moved(micro_batch, engine.device)).loss_sum
        engine.backward(loss, 1 / options.batch, last=True)
        engine.step(1.0)
        number += 1
        averages.measure(number)
        return float(loss.detach())

    config = GeneratorConfig("text", options.size, None if options.latents else 4)
    generator = Generator(config, denoiser, text, codec, schedule)
    how = Sampling(options.sampling_steps, guidance=GUIDANCE)

    def draw() -> Any:
        return draw_pictures(generator, ["a red circle"] * options.drawn, range(options.drawn), how, options.drawn)

    return step, draw if options.latents else None, prepared_s


def _moved(micro_batch: Any, device: torch.device) -> Any:
    """The micro-batch on the device, as the loop's feed puts it there."""
    return micro_batch.__class__(micro_batch.inputs.to(device), micro_batch.target_count, micro_batch.token_count)


def _peer(options: argparse.Namespace, folder: Path) -> tuple[Callable[[], float], Callable[[], Any] | None, float]:
    codec, text, denoiser, schedule = _parts(options)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net: Any = denoiser.net.to(device).train()
    encoder, pairs = text.model.to(device), _pairs(folder)
    ids = text.ids([pair.caption for pair in pairs])  # its script tokenizes ahead, too
    noising = DDPMScheduler(**schedule.config("ddpm"))
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    means = EMAModel(net.parameters(), decay=0.9999)
    order: list[int] = []

    def step() -> float:
        if len(order) < options.batch:
            order.extend(torch.randperm(len(pairs)).tolist())
        own = [order.pop() for _ in range(options.batch)]
        pixels = from_pictures([read_image(pairs[i].image) for i in own], options.size).to(device)
        latents = _peer_latents(codec, pixels)
        noise = torch.randn_like(latents)
        levels = torch.randint(0, 1000, (len(own),), device=device)
        noised = noising.add_noise(latents, noise, levels)
        with torch.autocast(device.type, torch.bfloat16, enabled=options.dtype == "autocast"):
            with torch.no_grad():
                states = encoder(ids[own].to(device), return_dict=False)[0]
            said = net(noised, levels, states, return_dict=False)[0]
        loss = functional.mse_loss(said.float(), noise.float(), reduction="mean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        means.step(net.parameters())
        return float(loss.detach())

    return step, _peer_drawing(options, codec, text, net, schedule) if options.latents else None, 0.0


def _peer_latents(codec: Codec, pixels: torch.Tensor) -> torch.Tensor:
    if isinstance(codec, LatentCodec):
        with torch.no_grad():
            return codec.vae.to(pixels.device).encode(pixels).latent_dist.sample() * codec.scale
    return functional.pixel_unshuffle(pixels, 4)


def _peer_drawing(
    options: argparse.Namespace, codec: Any, text: TextSide, net: Any, schedule: Schedule
) -> Callable[[], Any]:
    pipe = StableDiffusionPipeline(
        vae=codec.vae,
        text_encoder=text.model,
        tokenizer=text.tokenizer,
        unet=net,
        scheduler=DDIMScheduler(**schedule.config()),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    text.tokenizer.model_max_length = TOKENS
    pipe.set_progress_bar_config(disable=True)
    how = {"num_inference_steps": options.sampling_steps, "guidance_scale": GUIDANCE}

    def draw() -> Any:
        generators = [torch.Generator().manual_seed(seed) for seed in range(options.drawn)]
        return pipe(["a red circle"] * options.drawn, generator=generators, **how).images

    return draw


if __name__ == "__main__":
    main()
