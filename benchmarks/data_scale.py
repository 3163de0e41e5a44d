"""What it costs to open a recipe of 10,000, 100,000 and 1,000,000 samples: seconds and memory, first and later times.

    python benchmarks/data_scale.py [--counts 10000 100000 1000000]

Every row is a process of its own. "first" reads and checks the file and writes its index; "later" is what every rank and
every later run pays. An order of an epoch and the first 128 samples are part of opening. Memory is the resident set at
its end and how much of it is the process's own (the rest is the mapped file, which ranks share).
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = ["the", "a", "small", "red", "boat", "house", "tree", "dog", "stands", "near", "water", "under", "sky", "two"]


def write_samples(path: Path, count: int) -> None:
    """LLaVA-like conversations of two questions about one image, three samples an image; none of the images exists."""
    rng = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        for n in range(count):
            texts = [" ".join(rng.choices(WORDS, k=k)) for k in (8, 30, 8, 20)]
            turns = [
                {"from": ("human", "gpt")[i % 2], "value": ("<image>\n" if i == 0 else "") + text}
                for i, text in enumerate(texts)
            ]
            record = {"id": f"{n:09d}", "image": f"train/{n // 3:09d}.jpg", "conversations": turns}
            file.write(json.dumps(record) + "\n")


def resident_mib() -> tuple[float, float]:
    """(all, the process's own) resident memory of this process in MiB."""
    status = Path("/proc/self/status").read_text()
    total, own = (int(re.search(rf"{name}:\s+(\d+)", status)[1]) / 1024 for name in ("VmRSS", "RssAnon"))
    return total, own


def open_recipe(path: str, group_by_image: bool) -> None:
    started = time.monotonic()
    from mllm.data.dataset import Mixture
    from mllm.data.recipe import RecipeSettings, SourceSettings

    base, _ = resident_mib()
    imported = time.monotonic()
    source = SourceSettings(path=path, reader="llava", image_root=str(Path(path).parent))
    mixture = Mixture(RecipeSettings(name="scale", sources=(source,)), 0, group_by_image)
    opened = time.monotonic()
    order = mixture.order(0)
    ordered = time.monotonic()
    assert len({mixture.samples[index].id for index in order[:128]}) == 128
    ended = time.monotonic()
    total, own = resident_mib()
    seconds = [imported - started, opened - imported, ordered - opened, ended - ordered]
    print(json.dumps({"seconds": seconds, "rss": total, "own": own, "base": base}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--open", help=argparse.SUPPRESS)
    parser.add_argument("--group-by-image", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        open_recipe(options.open, options.group_by_image)
        return
    print("| samples | MB | opening | index s | order s | 128 samples s | RSS MiB | of it own |")
    print("| --: | --: | --- | --: | --: | --: | --: | --: |")
    with tempfile.TemporaryDirectory() as directory:
        os.environ["MLLM_CACHE_DIR"] = directory
        for count in options.counts:
            path = Path(directory) / f"{count}.jsonl"
            write_samples(path, count)
            for name, arguments in (("first", []), ("later", []), ("later, grouped by image", ["--group-by-image"])):
                command = [sys.executable, __file__, "--open", str(path), *arguments]
                found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
                _, opening, order, samples = found["seconds"]
                print(
                    f"| {count:,} | {path.stat().st_size / 1e6:.0f} | {name} | {opening:.2f} | {order:.2f} | "
                    f"{samples:.3f} | {found['rss']:.0f} | {found['own']:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
