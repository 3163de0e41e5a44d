"""How many samples a second a cluster's ranks can be fed: laying out, rendering, decoding and collating a step.

    OMP_NUM_THREADS=1 python benchmarks/rendering.py [--ranks 1 8 64 512] [--samples 20000]

Simulates one rank of each number: the global batch grows with the ranks, and the rank makes its window of it. The
cluster's rate is the global batch over the processor time that this takes one rank with one core (counted samples, median
of `--steps` steps); `before` renders the whole global batch on every rank, as a run without counts does. Shapes are those of
LLaVA's stages: a caption (592 tokens, 16 samples a rank), five turns (905 tokens, 8 samples a rank); 640×480 JPEGs.
`need` is what a 7B model on H100s takes in at 500 TFLOP/s a GPU.
"""

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
import yaml
from PIL import Image, ImageFilter
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mllm.data.counts import TokenCounts
from mllm.data.dataset import Mixture
from mllm.data.recipe import load_recipe
from mllm.data.settings import DataSettings
from mllm.finetune.task import InstructionTask
from mllm.media.decode import read_image
from mllm.media.prepare import ImagePreparer
from mllm.media.visual import ImageGeometry
from mllm.processor import Processor
from mllm.training.settings import LoopSettings

WORDS = [
    *("the", "a", "cat", "dog", "sits", "on", "table", "red", "blue", "person", "walking", "street", "near", "large"),
    *(
        "building",
        "with",
        "window",
        "and",
        "tree",
        "while",
        "sky",
        "looks",
        "clear",
        "today",
        "there",
        "are",
        "several",
    ),
]
# name: (prompt format, turns, words of a question, words of an answer, samples a rank)
STAGES = {
    "stage 1": ("plain", 1, (1, 3), (8, 20), 16),
    "stage 2": ("vicuna_v1", 5, (8, 20), (10, 60), 8),
}
NEED_PER_S = {1: 10.3, 8: 82.0, 64: 660.0, 512: 5300.0}
IMAGES = 24
SIZES = ((336, 336), (640, 480), (1024, 768))


def word_start_tokenizer() -> PreTrainedTokenizerFast:
    """BPE with a word-start prefix, as Vicuna's."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256))]
    corpus = [" ".join([*WORDS, "USER:", "ASSISTANT:"])] * 20
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=2000, special_tokens=special))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def write_photograph(path: Path, size: tuple[int, int]) -> None:
    """Noise smoothed to a photograph's file size; `size` is (width, height) in pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1.5)).save(path, quality=90)


def write_recipe(root: Path, name: str, count: int) -> Path:
    _, turns, question, answer, _ = STAGES[name]
    rng = random.Random(0)

    def words(bounds: tuple[int, int]) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(*bounds)))

    with open(root / f"{name}.jsonl", "w", encoding="utf-8") as file:
        for number in range(count):
            messages = []
            for turn in range(turns):
                shown = [{"type": "image"}] if turn == 0 else []
                messages.append({"role": "user", "content": [*shown, {"type": "text", "text": words(question)}]})
                messages.append({"role": "assistant", "content": words(answer)})
            record = {"id": f"{number:08d}", "messages": messages, "images": [f"{number % IMAGES}.jpg"]}
            file.write(json.dumps(record) + "\n")
    source = {"path": str(root / f"{name}.jsonl"), "image_root": str(root)}
    recipe = root / f"{name}.yaml"
    recipe.write_text(yaml.safe_dump({"name": name, "sources": [source]}))
    return recipe


def seconds_of_window(task: InstructionTask, ranks: int, steps: int) -> float:
    """Processor time in which rank 0 of `ranks` makes its window, the median of `steps` after one that isn't counted."""
    took = []
    for step in range(steps + 1):
        started = time.process_time()
        task.window(step % task.steps_per_epoch, 0, ranks)
        took.append(time.process_time() - started)
    return median(took[1:])


def measure_stage(root: Path, name: str, options: argparse.Namespace) -> None:
    prompt_format, *_, per_rank = STAGES[name]
    recipe = write_recipe(root, name, max(options.samples, per_rank * max(options.ranks)))
    preparer = ImagePreparer(336, (0.481, 0.458, 0.408), (0.269, 0.261, 0.276), "pad")
    processor = Processor(word_start_tokenizer(), prompt_format, ImageGeometry(336, 14), preparer)
    mixture = Mixture(load_recipe(str(recipe)), 0, False)
    started = time.monotonic()
    counts = TokenCounts(mixture, processor)
    counted_s = time.monotonic() - started
    count = len(mixture.samples)
    for ranks in options.ranks:
        size = per_rank * ranks
        loop = LoopSettings(global_batch_size=size, micro_batch_size=4)
        data = DataSettings(recipe=str(recipe), max_length_tokens=2048, packing=options.packing, workers=0)
        task, whole = (InstructionTask(mixture, processor, data, loop) for _ in range(2))
        task._counts = counts
        ours = size / seconds_of_window(task, ranks, options.steps)
        before = f"{size / render_whole_batch(whole, ranks):,.0f}" if size <= options.rendered else "–"
        need = NEED_PER_S.get(ranks)
        times = f"{ours / need:.1f}×" if need else "–"
        print(f"| {name} | {ranks} | {size:,} | {before} | {ours:,.0f} | {need or '–'} | {times} |", flush=True)
    print(f"counting {count:,} samples of {name}: {counted_s:.1f} s with {os.cpu_count()} cores", flush=True)


def render_whole_batch(task: InstructionTask, ranks: int) -> float:
    """Processor time of a window that is laid out from rendered samples."""
    task.prepare = lambda world_size: None  # type: ignore[method-assign]
    return seconds_of_window(task, ranks, 1)


def measure_images(root: Path, count: int) -> None:
    """Images a second of one core, read and made into the encoder's input."""
    preparer = ImagePreparer(336, (0.481, 0.458, 0.408), (0.269, 0.261, 0.276), "pad")
    print("\n| JPEG | images/s a core |\n| --- | --: |")
    for size in SIZES:
        path = root / f"{size[0]}.jpg"
        write_photograph(path, size)
        preparer(read_image(path))
        started = time.process_time()
        for _ in range(count):
            preparer(read_image(path))
        print(f"| {size[0]}×{size[1]} | {count / (time.process_time() - started):.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--packing", default="samples", choices=["none", "samples", "shared_prefix"])
    parser.add_argument("--rendered", type=int, default=1024, help="the largest batch to render whole, for comparison")
    parser.add_argument("--images", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        os.environ["MLLM_CACHE_DIR"] = str(root / "cache")
        for number in range(IMAGES):
            write_photograph(root / f"{number}.jpg", (640, 480))
        print(
            "| shape | ranks | global batch | whole batch rendered, samples/s | counted, samples/s | need | of need |"
        )
        print("| --- | --: | --: | --: | --: | --: | --: |")
        for name in STAGES:
            measure_stage(root, name, options)
        measure_images(root, options.images)


if __name__ == "__main__":
    main()
