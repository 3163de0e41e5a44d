"""The measuring parts of `make gpu-check`, each a process of its own: a LLaVA of 1.2 billion parameters through its stages.

    python benchmarks/gpu_sections.py shapes --work runs/gpu_check/work
    python benchmarks/gpu_sections.py stage1 stage2 --work runs/gpu_check/work

`shapes` writes weights and data, which the others read. Each prints its figures as a line of JSON behind `figures:`.
`--size tiny` walks the same code on a CPU in seconds; its figures mean nothing.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import markdown_table
from workloads import CLIP_B16, CLIP_L14_336, LLAMA_1B, prepare, save_parts, save_recipe, settings_of, train_step

from mllm.finetune.run import finetune
from mllm.finetune.settings import FinetuneSettings
from mllm.training.gpus import device_peak_flops
from mllm.training.loop import peak_memory_gib

TARGET_MFU = 0.40
TOLERATED_DISTANCE = 1e-2  # of losses in bfloat16, whose sums a GPU adds in any order
WARM_UP = 2  # steps that no figure counts
TINY_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "vocab_size": 2048,
    "tie_word_embeddings": True,
}
TINY_VISION = CLIP_B16 | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}


@dataclass(frozen=True)
class Size:
    """How much work the sections do. rows: lengths of packed rows in tokens that the utilization is measured at.

    words: shortest and longest conversation. tokens_per_step: of the measured steps, about.
    """

    text: dict[str, Any]
    vision: dict[str, Any]
    images: int
    words: tuple[int, int]
    rows: tuple[int, ...]
    tokens_per_step: int
    global_batch: int
    steps: int


SIZES = {
    "1b": Size(LLAMA_1B, CLIP_L14_336, 256, (40, 200), (2048, 4096, 8192), 32768, 16, 8),
    "tiny": Size(TINY_TEXT, TINY_VISION, 8, (20, 40), (128, 256), 256, 4, 4),
}
QUANTIZED = {"language_model": "qlora", "projector": "full", "lora": {"rank": 64, "alpha": 128, "dropout": 0.0}}


def shapes(size: Size, work: Path) -> dict[str, Any]:
    """Write random weights, made on the device, and a recipe of pictures with 5 conversations each."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        torch.set_default_dtype(torch.bfloat16)
        try:
            save_parts(work / "parts", size.text, size.vision)
        finally:
            torch.set_default_dtype(torch.float32)
    save_recipe(work / "data", size.images, 5, size.words)
    weights = sum(path.stat().st_size for path in (work / "parts").rglob("*.safetensors"))
    return {"bytes of weights": weights}


def settings(size: Size, work: Path, name: str, ds_config: str | None, **sections: dict[str, Any]) -> FinetuneSettings:
    """Settings of a run `name` of `size.steps` steps; without a ds_config on plain torch."""
    engine = {"kind": "deepspeed", "ds_config": f"ds_configs/{ds_config}.json"} if ds_config else {"kind": "torch"}
    train = {
        "dtype": "bfloat16",
        "global_batch_size": size.global_batch,
        "max_steps": size.steps,
        "gradient_checkpointing": True,
        "keep_checkpoints": 1,
    }
    merged = {"train": train, "engine": engine, "data": {"max_length_tokens": size.rows[0]}, "optim": {"lr": 1e-4}}
    for section, values in sections.items():
        merged[section] = merged.get(section, {}) | values
    return settings_of(work / "parts", work / "data" / "recipe.yaml", work / name, **merged)


def run_of(wanted: FinetuneSettings, stop_after: int | None = None) -> dict[str, Any]:
    """Train as `wanted` says; what its metrics say of loss, speed and memory."""
    started = time.perf_counter()
    finetune(wanted, stop_after)
    seconds = time.perf_counter() - started
    lines = [json.loads(line) for line in (Path(wanted.run_dir) / "metrics.jsonl").read_text().splitlines()]
    later = lines[WARM_UP:] or lines
    return {
        "losses": [round(line["loss"], 5) for line in lines],
        "gradient norms": [round(line["grad_norm"], 5) for line in lines],
        "tokens/s": median(line["tokens_per_second"] for line in later),
        "MFU": median(line.get("mfu", 0.0) for line in later),
        "data wait share": median(line["data_wait_share"] for line in later),
        "peak memory, GiB": peak_memory_gib(),
        "seconds with loading and saving": seconds,
    }


def stage1(size: Size, work: Path) -> dict[str, Any]:
    """The projector alone learns."""
    frozen = {"projector": "full", "language_model": "frozen"}
    return run_of(settings(size, work, "stage1", "zero2", trainable=frozen, optim={"lr": 1e-3}))


def stage2(size: Size, work: Path) -> dict[str, Any]:
    """Projector and language model learn, from stage 1's model, under ZeRO-2."""
    return run_of(settings(size, work, "stage2", "zero2"))


def zero3(size: Size, work: Path) -> dict[str, Any]:
    """The same under ZeRO-3."""
    return equal_to_stage2(run_of(settings(size, work, "zero3", "zero3")), work)


def fsdp(size: Size, work: Path) -> dict[str, Any]:
    """The same on torch's own fully sharded data parallelism."""
    return equal_to_stage2(run_of(settings(size, work, "fsdp", None, engine={"kind": "fsdp"})), work)


def equal_to_stage2(figures: dict[str, Any], work: Path) -> dict[str, Any]:
    """`figures` and how far their losses are from stage 2's. Raises SystemExit where another layout gave other losses."""
    whole = [json.loads(line)["loss"] for line in (work / "stage2" / "metrics.jsonl").read_text().splitlines()]
    apart = max(abs(a - b) / b for a, b in zip(figures["losses"], whole, strict=True))
    if apart > TOLERATED_DISTANCE:
        raise SystemExit(f"error: losses {figures['losses']} are not stage 2's {whole}")
    return figures | {"largest relative distance from stage 2's losses": apart}


def lora(size: Size, work: Path) -> dict[str, Any]:
    return run_of(settings(size, work, "lora", "zero2", trainable=QUANTIZED | {"language_model": "lora"}))


def qlora(size: Size, work: Path) -> dict[str, Any]:
    return run_of(settings(size, work, "qlora", "zero2", trainable=QUANTIZED))


def offload(size: Size, work: Path) -> dict[str, Any]:
    """Stage 2 with the optimizer's state in main memory."""
    return equal_to_stage2(run_of(settings(size, work, "offload", "zero2_offload")), work)


def resume(size: Size, work: Path) -> dict[str, Any]:
    """Stage 2 stopped half-way."""
    run_of(settings(size, work, "resumed", "zero2"), stop_after=size.steps // 2)
    return {"stopped after": size.steps // 2}


def resumed(size: Size, work: Path) -> dict[str, Any]:
    """Go on with what `resume` stopped (in a process of its own, as after a kill)."""
    return equal_to_stage2(run_of(settings(size, work, "resumed", "zero2")), work)


def step(size: Size, work: Path) -> dict[str, Any]:
    """Utilization of the step alone, by length of the packed rows; nothing inside a micro-batch may wait for the device."""
    rows, figures = [], {}
    for length in size.rows:
        wanted = settings(
            *(size, work, f"step{length}", "zero1"),
            data={"max_length_tokens": length, "packing": "samples"},
            train={
                "global_batch_size": max(4, size.tokens_per_step // (sum(size.words) // 2 + tokens_of_an_image(size)))
            },
        )
        measured = measure_step(wanted, size.steps)
        figures[f"rows of {length}"] = measured
        rows.append([length, *(f"{measured[name]:.3g}" for name in ("MFU", "tokens/s", "seconds a step"))])
    print(markdown_table(["tokens a row", "MFU", "tokens/s", "seconds a step"], rows))
    best = max(values["MFU"] for values in figures.values())
    return figures | {"best MFU": best, "target MFU": TARGET_MFU, "target reached": best >= TARGET_MFU}


def tokens_of_an_image(size: Size) -> int:
    return (size.vision["image_size"] // size.vision["patch_size"]) ** 2


def measure_step(wanted: FinetuneSettings, steps: int) -> dict[str, float]:
    """Median of `steps` optimizer steps on one window, prepared beforehand."""
    task, engine = prepare(wanted)
    window = task.window(0, 0, 1)
    seconds = []
    for number in range(WARM_UP + steps):
        started = time.perf_counter()
        # While caches fill and kernels compile the host may wait.
        train_step(task, engine, window, nullcontext if number < WARM_UP else forbidden_waits)
        seconds.append(time.perf_counter() - started)
    took = median(seconds[WARM_UP:])
    flops = sum(micro_batch.flops for micro_batch in window.micro_batches)
    tokens = sum(micro_batch.token_count for micro_batch in window.micro_batches)
    figures = {
        "MFU": flops / took / device_peak_flops(engine.device, wanted.train.dtype),
        "tokens/s": tokens / took,
        "seconds a step": took,
        "micro-batches": float(len(window.micro_batches)),
        "peak memory, GiB": peak_memory_gib(),
    }
    if torch.cuda.is_available():
        del task, engine, window
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return figures


@contextmanager
def forbidden_waits() -> Iterator[None]:
    """Within the block torch raises where the host would wait for a CUDA device."""
    if not torch.cuda.is_available():
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


SECTIONS: dict[str, Callable[[Size, Path], dict[str, Any]]] = {
    section.__name__: section
    for section in (shapes, stage1, stage2, zero3, fsdp, lora, qlora, offload, resume, resumed, step)
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="+", choices=SECTIONS, metavar="SECTION", help=f"Of {', '.join(SECTIONS)}.")
    parser.add_argument("--work", type=Path, required=True, help="Where weights, data and runs lie.")
    parser.add_argument("--size", choices=SIZES, default="1b", help="How large a model (default: %(default)s).")
    options = parser.parse_args(arguments)
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    for section in options.sections:
        figures = SECTIONS[section](SIZES[options.size], options.work.resolve())
        print("figures: " + json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
