"""How much of the machine's matrix-product rate training turns into useful work.

    python benchmarks/mfu.py                       # float32 and autocast, on this machine's device
    OMP_NUM_THREADS=2 python benchmarks/mfu.py

Useful FLOPs are those of `mllm/finetune/flops.py`. The rate they are held against is measured in the same run, between the
training steps: products of 4096³, and products of the model's own shapes, each counted as often as a step uses it.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import in_turn, machine, markdown_table, spread
from torch import nn
from workloads import prepare, save_parts, save_recipe, settings_of, train_step

from mllm.batch import Batch
from mllm.model.multimodal import MultimodalLM

SIDE = 4096
REPEATED_CPU, REPEATED_CUDA = 2e10, 1e13
PRECISIONS = {"float32": torch.float32, "autocast": torch.bfloat16}


def products(m: int, k: int, n: int, dtype: torch.dtype, device: torch.device) -> Callable[[], Any]:
    """As many products of [m, k] and [k, n] as make up REPEATED FLOPs, so that their time can be measured."""
    a, b = torch.randn(m, k, device=device).to(dtype), torch.randn(k, n, device=device).to(dtype)
    out = torch.empty(m, n, dtype=dtype, device=device)

    def run() -> None:
        for _ in range(repeats(m, k, n)):
            torch.mm(a, b, out=out)

    return run


def repeats(m: int, k: int, n: int) -> int:
    return max(1, round((REPEATED_CUDA if torch.cuda.is_available() else REPEATED_CPU) / (2 * m * k * n)))


def own_shapes(model: MultimodalLM, batch: Batch) -> dict[tuple[int, int, int], int]:
    """(m, k, n) of the forward products of all linear layers on a batch → how often it has them."""
    tiles = 0 if batch.tiles is None else len(batch.tiles)
    config = model.vision_encoder.model.config
    patches = (config.image_size // config.patch_size) ** 2
    head = model.language_model.get_output_embeddings()
    positions = {
        model.vision_encoder: tiles * (patches + 1),
        model.projector: tiles * patches,
        model.language_model: batch.input_ids.numel(),
    }
    shapes: dict[tuple[int, int, int], int] = {}
    for part, count in positions.items():
        for module in part.modules():
            if isinstance(module, nn.Linear):
                key = (batch.target_count if module is head else count, module.in_features, module.out_features)
                shapes[key] = shapes.get(key, 0) + 1
    return shapes


def measure(root: Path, dtype: str, rounds: int) -> list[str]:
    """A row of the table: rates in GFLOP/s and their ratios, medians over `rounds` in which all take turns."""
    settings = settings_of(root, root / "data" / "recipe.yaml", root / "run", train={"dtype": dtype})
    task, engine = prepare(settings)
    assert isinstance(engine.module, MultimodalLM)
    window = task.window(0, 0, 1)
    batches = [micro_batch.inputs for micro_batch in window.micro_batches]
    useful = sum(micro_batch.flops for micro_batch in window.micro_batches)

    shapes = own_shapes(engine.module, max(batches, key=lambda batch: batch.input_ids.numel()))
    precision = PRECISIONS[dtype]
    timed = {str(shape): products(*shape, precision, engine.device) for shape in [*shapes, (SIDE, SIDE, SIDE)]}
    taken = in_turn({"step": lambda: train_step(task, engine, window), **timed}, rounds)

    seconds = {name: median(times) for name, times in taken.items()}
    rate = useful / seconds["step"]
    square = (SIDE, SIDE, SIDE)

    def once(shape: tuple[int, int, int]) -> float:
        return seconds[str(shape)] / repeats(*shape)

    square_rate = 2 * SIDE**3 / once(square)
    own_flops = sum(count * 2 * m * k * n for (m, k, n), count in shapes.items())
    own_rate = own_flops / sum(count * once(shape) for shape, count in shapes.items())
    return [
        dtype,
        f"{useful / 1e9:,.0f}",
        f"{seconds['step']:.2f}",
        *(f"{value / 1e9:.0f}" for value in (rate, own_rate, square_rate)),
        f"{rate / own_rate:.0%}",
        f"{rate / square_rate:.0%}",
        f"{spread(taken['step']):.0%}, {spread(taken[str(square)]):.0%}",
    ]


def profile(root: Path, dtype: str) -> str:
    """Where the time of one step goes, by operator."""
    settings = settings_of(root, root / "data" / "recipe.yaml", root / "run", train={"dtype": dtype})
    task, engine = prepare(settings)
    window = task.window(0, 0, 1)
    train_step(task, engine, window)
    with torch.profiler.profile() as recorded:
        train_step(task, engine, window)
    order = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    return str(recorded.key_averages().table(sort_by=order, row_limit=16, max_name_column_width=48))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=4, help="in a step, five conversations on each")
    parser.add_argument("--dtypes", nargs="+", default=list(PRECISIONS), choices=list(PRECISIONS))
    parser.add_argument("--profile", action="store_true", help="print the operators of one step instead")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        save_parts(root)
        save_recipe(root / "data", options.images, conversations_per_image=5, text_tokens=(30, 110))
        if options.profile:
            print("\n".join(profile(root, dtype) for dtype in options.dtypes))
            return
        rows = [measure(root, dtype, options.rounds) for dtype in options.dtypes]
    header = [
        "dtype",
        "GFLOP a step",
        "s",
        "GFLOP/s",
        "own shapes",
        "4096³",
        "of own",
        "of 4096³",
        "spread (step, 4096³)",
    ]
    print(f"{machine()}\n{options.rounds} rounds; SmolLM2-135M and CLIP ViT-B/16 in shape, shared prefix, full\n")
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
