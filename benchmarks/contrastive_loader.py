"""Pairs a second that reach the form a model reads, by our loader and by open_clip's webdataset loader.

Both have the same shards, augmentation, size, normalization, tokenizer, batches and number of workers.

    pip install --no-deps open_clip_torch torchvision 'webdataset<=0.2.86' braceexpand ftfy wcwidth
    python benchmarks/contrastive_loader.py [--shards 'data/{00000..00007}.tar']

Without --shards it writes some: JPEGs of 256 pixels and more, of noise smoothed to the file sizes of photographs, each with a
txt and a json as img2dataset has them. open_clip's loader is `open_clip_train.data.get_wds_dataset` with its own training
transform (RandomResizedCrop of 0.9 to 1, bicubic); ours is a stream with `random_resized_crop`. Nothing consumes the batches.
Rounds alternate; CPU is that of all processes of a loader, which other work on the machine disturbs less than the clock.
"""

import argparse
import io
import json
import multiprocessing
import os
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torchvision_ops  # noqa: F401
from measuring import machine, markdown_table
from PIL import Image, ImageFilter

from mllm.contrastive.augment import AugmentSettings
from mllm.contrastive.data import PairBatcher
from mllm.contrastive.decoding import PairDecoder
from mllm.contrastive.mixture import PairMixture
from mllm.contrastive.settings import ClipDataSettings
from mllm.contrastive.sources import open_sources
from mllm.media.prepare import ImagePreparer
from mllm.model.dual_encoder import train_tokenizer
from mllm.training.feed import made_ahead

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
OURS, PEER = "ours", "open_clip"
TICKS = os.sysconf("SC_CLK_TCK")
WORDS = ("a", "photo", "of", "red", "blue", "small", "big", "dog", "cat", "house", "on", "the", "grass", "near", "tree")
PICTURES = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", help="webdataset shards, in braces; by default eight of 512 pairs are written")
    parser.add_argument(
        "--side", type=int, default=256, help="shorter side of the pictures that are written, in pixels"
    )
    parser.add_argument("--size", type=int, default=224, help="side of the model's input, in pixels")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--batches", type=int, default=8, help="timed batches a round")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        shards = options.shards or write_shards(Path(folder), options.side)
        _report(options, _race(options, shards))


def _race(options: argparse.Namespace, shards: str) -> dict[str, list[tuple[float, float]]]:
    """(pairs a second, CPU milliseconds a pair) of each round of each loader."""
    found: dict[str, list[tuple[float, float]]] = {PEER: [], OURS: []}
    tokenizer = _tokenizer(shards, options)
    for round_number in range(options.rounds):
        for name, loader in ((PEER, _theirs), (OURS, _ours)):
            found[name].append(_timed(loader(options, shards, tokenizer, round_number), options))
            print(f"{name}: {found[name][-1][0]:.1f} pairs/s, {found[name][-1][1]:.2f} CPU ms a pair", flush=True)
    return found


def _timed(batches: Iterator[tuple[torch.Tensor, torch.Tensor]], options: argparse.Namespace) -> tuple[float, float]:
    for _ in range(options.workers):  # each worker's first is spent on starting it
        next(batches)
    cpu, started = _cpu_s(), time.perf_counter()
    for _ in range(options.batches):
        pixels, _ = next(batches)
        assert pixels.shape == (options.batch, 3, options.size, options.size) and pixels.dtype == torch.float32
    took, used = time.perf_counter() - started, _cpu_s() - cpu
    count = options.batch * options.batches
    return count / took, 1000 * used / count


def _cpu_s() -> float:
    """Seconds of the CPU that this process and its workers have used."""
    children = [child.pid for child in multiprocessing.active_children()]
    return sum(_used_s(pid) for pid in (os.getpid(), *children) if pid is not None)


def _used_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _tokenizer(shards: str, options: argparse.Namespace) -> Any:
    return train_tokenizer(_mixture(shards, options, 0).captions(1000), 1024, 32)


def _mixture(shards: str, options: argparse.Namespace, seed: int) -> PairMixture:
    count = options.batch * 1000
    source = {"path": shards, "stream": True, "count": count, "shuffle_buffer": 4096, "lanes": options.workers}
    return PairMixture(open_sources(ClipDataSettings(pairs=[source]), seed), seed)  # type: ignore[list-item]


def _ours(options: argparse.Namespace, shards: str, tokenizer: Any, seed: int) -> Iterator[Any]:
    augment = AugmentSettings(kinds=("random_resized_crop",), scale=(0.9, 1.0))
    preparer = ImagePreparer(options.size, MEAN, STD)
    mixture, decoder = _mixture(shards, options, seed), PairDecoder(options.workers)
    batcher = PairBatcher(mixture, tokenizer, preparer, options.batch, seed, augment, ignored="none", decoder=decoder)
    for batch, _ in made_ahead(batcher.batch, 0, 10**6):
        yield batch.pixel_values, batch.input_ids


def _theirs(options: argparse.Namespace, shards: str, tokenizer: Any, seed: int) -> Iterator[Any]:
    from open_clip.transform import image_transform
    from open_clip_train.data import get_wds_dataset

    arguments = SimpleNamespace(
        train_data=shards, train_num_samples=options.batch * 1000, train_data_upsampling_factors=None,
        dataset_resampled=False, seed=seed, batch_size=options.batch, workers=options.workers, world_size=1,
    )  # fmt: skip
    transform = image_transform(options.size, is_train=True, mean=MEAN, std=STD)

    def tokenize(text: str) -> torch.Tensor:
        return torch.tensor(tokenizer([text], padding="max_length", truncation=True)["input_ids"])

    loader = get_wds_dataset(arguments, transform, True, epoch=seed, tokenizer=tokenize).dataloader
    while True:
        yield from loader


def write_shards(folder: Path, side: int, shards: int = 8, pairs: int = 512) -> str:
    """Write shards of pairs; returns the list of them in braces."""
    rng = np.random.default_rng(0)
    pictures = [_picture(rng, side) for _ in range(PICTURES)]
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(shard * pairs, (shard + 1) * pairs):
                caption = " ".join(rng.choice(WORDS, rng.integers(4, 14)))
                facts = {"caption": caption, "key": f"{number:09d}", "status": "success", "url": "", "exif": "{}"}
                members = {
                    "jpg": pictures[number % PICTURES],
                    "txt": caption.encode(),
                    "json": json.dumps(facts).encode(),
                }
                for suffix, content in members.items():
                    info = tarfile.TarInfo(f"{number:09d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return str(folder / f"{{00000..{shards - 1:05d}}}.tar")


def _picture(rng: np.random.Generator, side: int) -> bytes:
    """A JPEG, `side` pixels high and up to half as much wider."""
    width = int(side * rng.uniform(1, 1.5))
    coarse = Image.fromarray(rng.integers(0, 256, (side // 8, width // 8, 3), dtype=np.uint8))
    grain = rng.normal(0, 14, (side, width, 1))
    pixels = np.asarray(coarse.resize((width, side), Image.Resampling.BICUBIC)) + grain
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.6))
    picture.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def _report(options: argparse.Namespace, found: dict[str, list[tuple[float, float]]]) -> None:
    middle = {name: [median(values) for values in zip(*rounds, strict=True)] for name, rounds in found.items()}
    print(f"\n{machine()}; {options.workers} workers, {options.size} px, batches of {options.batch}\n")
    rows = [
        [
            name,
            f"{rate:.1f}",
            f"{rate / middle[PEER][0]:.2f}",
            f"{cpu:.2f}",
            f"{middle[PEER][1] / cpu:.2f}",
            f"{min(r for r, _ in found[name]):.1f}–{max(r for r, _ in found[name]):.1f}",
        ]
        for name, (rate, cpu) in middle.items()
    ]
    header = ["loader", "pairs/s", f"/ {PEER}", "CPU ms a pair", f"{PEER} /", "range of pairs/s"]
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
