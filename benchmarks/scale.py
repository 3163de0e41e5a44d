"""Cost against sequence length, vocabulary size, samples in the recipe, and ranks: linear where it should be.

    python benchmarks/scale.py --out docs/measurements/scale.png

Each series doubles one size and leaves the others; a cost that is linear doubles with it. Ranks are processes that share
the machine's cores, so two of them can't be twice as fast on a machine whose cores one of them keeps busy.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
import yaml
from measuring import machine, markdown_table
from workloads import CLIP_B16, SMOLLM2_135M, prepare, save_parts, save_recipe, settings_of

from mllm.batch import NO_PARENT, Batch, SegmentBounds, flat_places
from mllm.data.dataset import Mixture
from mllm.data.recipe import load_recipe
from mllm.finetune.settings import FinetuneSettings
from mllm.training.task import MicroBatch

ROOT = Path(__file__).parents[1]
# SmolLM2-135M's width with fewer layers, so that what scales with length and vocabulary shows beside what doesn't.
TEXT = SMOLLM2_135M | {"num_hidden_layers": 6}
VISION = CLIP_B16 | {"num_hidden_layers": 3}
TINY = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4}


@dataclass(frozen=True)
class Series:
    """Cost in seconds at each size; `expected`: the factor by which a doubling of the size should raise it."""

    name: str
    unit: str
    sizes: Sequence[int]
    seconds: Sequence[float]
    expected: str
    shared: bool = False  # more of the size share one cost, so that it should fall

    @property
    def ideal(self) -> list[float]:
        """A cost that is linear in the size (for a shared one: in its inverse), through the largest size measured."""
        first, last = (self.sizes[0], self.seconds[0]), (self.sizes[-1], self.seconds[-1])
        if self.shared:
            return [first[1] * first[0] / size for size in self.sizes]
        return [last[1] * size / last[0] for size in self.sizes]

    @property
    def growth(self) -> list[float]:
        """Factors between neighbouring sizes."""
        return [b / a for a, b in zip(self.seconds, self.seconds[1:], strict=False)]


def row_of(segments: Sequence[int], targets_per_segment: int) -> MicroBatch:
    """A text-only packed row of segments of these lengths, whose last `targets_per_segment` positions are learned."""
    ids = torch.cat([torch.full((length,), n) for n, length in enumerate(segments)])[None]
    learned = torch.zeros_like(ids, dtype=torch.bool)
    offset = 0
    for length in segments:
        offset += length
        learned[0, offset - targets_per_segment : offset] = True
    places = torch.cat([torch.arange(length) for length in segments])[None]
    parents = torch.full((1, len(segments)), NO_PARENT)
    bounds = SegmentBounds.of([segments], parents.tolist(), ids.numel())
    images, targets = ids.new_empty(0), flat_places(learned)
    batch = Batch(torch.full_like(ids, 9), places, ids, parents, bounds, images, targets, torch.full_like(targets, 9))
    return MicroBatch(batch, batch.target_count, ids.numel())


def seconds_of(settings: FinetuneSettings, micro_batch: MicroBatch, rounds: int) -> float:
    """Forward, backward and optimizer step of one micro-batch."""
    task, engine = prepare(settings)
    taken = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        with engine.autocast():
            loss = task.loss(engine.module, micro_batch).loss_sum
        engine.backward(loss, 1e-3, last=True)
        del loss
        engine.step(1.0)
        taken.append(time.perf_counter() - started)
    return median(taken[1:])


def by_length(root: Path, rounds: int) -> list[Series]:
    """One sample of growing length, and a row of growing length packed with samples of 256 tokens."""
    settings = _small(root / "lengths", TEXT)
    sizes = (256, 512, 1024, 2048)
    alone = [seconds_of(settings, row_of([size], 64), rounds) for size in sizes]
    packed = [seconds_of(settings, row_of([256] * (size // 256), 64), rounds) for size in sizes]
    return [
        Series("one sample of T tokens", "tokens", sizes, alone, "2 to 4 (attention grows with T²)"),
        Series("row of T tokens, samples of 256", "tokens", sizes, packed, "2"),
    ]


def by_vocabulary(root: Path, rounds: int) -> list[Series]:
    sizes = (12288, 24576, 49152, 98304)
    seconds = []
    for size in sizes:
        settings = _small(root / f"vocabulary{size}", TEXT | {"vocab_size": size, "num_hidden_layers": 1})
        seconds.append(seconds_of(settings, row_of([512], 256), rounds))
    return [Series("vocabulary, one layer", "entries", sizes, seconds, "at most 2")]


def by_samples(root: Path, rounds: int) -> list[Series]:
    """Opening a recipe that was opened before, and ordering an epoch of it."""
    os.environ["MLLM_CACHE_DIR"] = str(root / "cache")
    sizes = (2000, 4000, 8000, 16000)
    first: list[float] = []
    later: list[float] = []
    for size in sizes:
        recipe = save_recipe(root / f"samples{size}", 4, size // 4, (30, 110))
        for times in (first, later):
            started = time.perf_counter()
            Mixture(load_recipe(str(recipe)), 0, True).order(0)
            times.append(time.perf_counter() - started)
    return [
        Series("opening a recipe, first time", "samples", sizes, first, "2"),
        Series("opening a recipe, later", "samples", sizes, later, "at most 2"),
    ]


def by_ranks(root: Path, steps: int) -> list[Series]:
    """Seconds of a step by the run's own metrics, one thread a rank, the same global batch."""
    save_parts(root, TEXT, VISION)
    recipe = save_recipe(root / "data", 8, 5, (30, 110))
    seconds = []
    for ranks in (1, 2):
        settings = settings_of(
            root,
            recipe,
            root / f"ranks{ranks}",
            data={"max_length_tokens": 640},
            train={"global_batch_size": 20, "epochs": steps / 2, "save_every_steps": None},
            engine={"kind": "deepspeed", "ds_config": "ds_configs/zero2.json"},
        )
        seconds.append(_launched_step_seconds(root, settings, ranks))
    return [Series("step of the same batch, ranks", "ranks", (1, 2), seconds, "0.5 with a core a rank", shared=True)]


def _small(root: Path, text: dict) -> FinetuneSettings:
    save_parts(root, text, CLIP_B16 | TINY)
    recipe = save_recipe(root / "data", 1, 1, (30, 40))
    return settings_of(root, recipe, root / "run")


def _launched_step_seconds(root: Path, settings: FinetuneSettings, ranks: int) -> float:
    config = root / f"ranks{ranks}.yaml"
    config.write_text(yaml.safe_dump(settings.model_dump(mode="json")), encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}", f"--master_port={port}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*command, "train/finetune.py", "--config", str(config)],
        cwd=ROOT,
        env=environment,
        check=True,
        capture_output=True,
    )
    lines = (Path(settings.run_dir) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return median(json.loads(line)["step_s"] for line in lines[1:])


def draw(series: Sequence[Series], path: Path) -> None:
    """Each series on logarithmic axes, beside its ideal line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(2, (len(series) + 1) // 2, figsize=(9, 5), layout="constrained")
    for axis, one in zip(axes.flat, series, strict=False):
        axis.loglog(one.sizes, one.seconds, "o-", base=2, label="measured")
        axis.loglog(one.sizes, one.ideal, ":", base=2, label="linear")
        axis.set_xticks(one.sizes, [f"{size:,}" for size in one.sizes])
        axis.yaxis.set_major_locator(ticker.LogLocator(base=2, subs=(1,)))
        axis.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:.2g}"))
        axis.minorticks_off()
        axis.set_title(one.name, fontsize=8)
        axis.set_xlabel(one.unit, fontsize=7)
        axis.set_ylabel("s", fontsize=7)
        axis.tick_params(labelsize=6)
    for axis in axes.flat[len(series) :]:
        axis.axis("off")
    axes.flat[0].legend(fontsize=7)
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="of the run on one and two ranks")
    parser.add_argument("--out", type=Path, default=Path("runs/scale.png"), help="where to put the picture")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        series = [
            *by_length(root, options.rounds),
            *by_vocabulary(root, options.rounds),
            *by_samples(root, options.rounds),
            *by_ranks(root / "ranks", options.steps),
        ]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    draw(series, options.out)
    rows = [
        [
            one.name,
            ", ".join(f"{size:,}" for size in one.sizes),
            ", ".join(f"{value:.3g}" for value in one.seconds),
            ", ".join(f"{factor:.2f}" for factor in one.growth),
            one.expected,
        ]
        for one in series
    ]
    print(f"{machine()}\n")
    print(markdown_table(["what grows", "sizes", "seconds", "factor at each doubling", "expected"], rows))


if __name__ == "__main__":
    main()
