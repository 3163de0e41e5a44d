"""Seconds in turn, memory, the machine in words, and tables: how the benchmarks measure and tell."""

import os
import platform
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers


def in_turn(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each of `rounds`, after one round that isn't counted.

    They take turns, so that a slow minute of the machine falls on all of them.
    """
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                taken[name].append(time.perf_counter() - started)
    return taken


def rates_table(
    seconds: Mapping[str, Sequence[float]], answers: Mapping[str, Sequence[str]], ours: str = "ours"
) -> str:
    """A table of questions a second: seconds of each contender's rounds and its answers; all but `ours` are peers."""
    best = min(median(own) for name, own in seconds.items() if name != ours)
    rows = [
        [
            name,
            f"{len(answers[name]) / median(own):.2f}",
            f"{spread(own):.2f}",
            f"{best / median(own):.2f}",
            f"{sum(a == b for a, b in zip(answers[name], answers[ours], strict=True))} of {len(answers[name])}",
        ]
        for name, own in seconds.items()
    ]
    return markdown_table(["", "questions/s", "spread", "against the best peer", "answers equal to ours"], rows)


def spread(seconds: Sequence[float]) -> float:
    """(largest − smallest) / median: above some 0.1 the machine wasn't calm, and the benchmark should be run again."""
    return (max(seconds) - min(seconds)) / median(seconds)


def peak_rss_bytes() -> int:
    """The most memory that this process has had in RAM at once since its start."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def machine() -> str:
    """One line: device, threads, versions."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu_name()
    return (
        f"{device}, {torch.get_num_threads()} of {os.cpu_count()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
