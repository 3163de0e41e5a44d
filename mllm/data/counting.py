"""Counting the tokens of an index's samples, by several processes where there are many, and keeping what was counted.

    python -m mllm.data.counting JOB

is such a process: a file tells it what to count, and it writes parts that a run which was killed finds again. Processes are
started and not forked: the one that asks may hold a GPU, and threads.
"""

import io
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

import mllm
from mllm.data.collate import usable_cores
from mllm.data.example import render_whole
from mllm.data.index import SampleIndex, cache_directory, read_cached_index, writing_alone
from mllm.errors import BadSampleError, UserError
from mllm.files import atomic_directory
from mllm.processor import Processor

logger = logging.getLogger(__name__)

ROWS_PER_PART = 2048
PARTS_PER_PROCESS = 4  # fewer are counted sooner than a process has started
MAX_PROCESSES = 16  # each holds torch and a tokenizer
ARRAYS = ("length", "first_supervised", "span_ends", "spans", "opening_ends", "openings")


class FileCounts:
    """The counts of one file's samples, mapped from the disk.

    `faults`: row → (kind, reason) of samples that can't be trained on; kind "" for what isn't a fault of the sample.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # As plain arrays over the mapped files: numpy's own class for these costs several times as much for each element.
        arrays = {name: np.asarray(np.load(directory / f"{name}.npy", mmap_mode="r")) for name in ARRAYS}
        self._length, self._first = arrays["length"], arrays["first_supervised"]
        self._span_ends, self._spans = arrays["span_ends"], arrays["spans"]
        self._opening_ends, self._openings = arrays["opening_ends"], arrays["openings"]
        self._faults = directory / "faults.json"

    def __len__(self) -> int:
        return len(self._length)

    @cached_property
    def faults(self) -> dict[int, tuple[str, str]]:
        return {row: (kind, reason) for row, kind, reason in json.loads(self._faults.read_text(encoding="utf-8"))}

    def figures(self, row: int) -> tuple[int, int, tuple[tuple[int, int], ...]]:
        """(length, index of the first supervised token, (start, length) of each image) in tokens."""
        spans = self._images(row)[:, :2].tolist()
        return int(self._length[row]), int(self._first[row]), tuple((start, count) for start, count in spans)

    def tile_counts(self, row: int) -> tuple[int, ...]:
        """Tiles of each image."""
        return tuple(self._images(row)[:, 2].tolist())

    def opening(self, row: int) -> np.ndarray:
        """int32 ids before the first supervised token."""
        ids = self._openings[self._begin(self._opening_ends, row) : int(self._opening_ends[row])]
        _, first, spans = self.figures(row)
        repeats, shift = np.ones(len(ids), dtype=np.int64), 0
        for start, count in spans:
            if start < first:
                repeats[start - shift] = count
                shift += count - 1
        return np.repeat(ids, repeats)

    def _images(self, row: int) -> np.ndarray:
        """int32 [images, 3]: start, length and tiles of each."""
        return self._spans[self._begin(self._span_ends, row) : int(self._span_ends[row])]

    @staticmethod
    def _begin(ends: np.ndarray, row: int) -> int:
        return int(ends[row - 1]) if row else 0


def open_counts(index_key: str, rows: int, processor: Processor, rendering: str) -> FileCounts:
    """The counts of the `rows` samples of an index, from the cache or counted and written to it.

    rendering: the key of all that decides about tokens. Of several processes that want the same counts one counts, with
    processes of its own, and the others wait. Raises UserError when that can't be done.
    """
    directory = cache_directory()
    assert directory is not None
    key = f"{index_key}-{rendering}"
    final = directory / f"{key}.counts"
    if not final.is_dir():
        with writing_alone(directory, key, "token counts"):
            if not final.is_dir():
                _count(index_key, rows, processor, final)
    return FileCounts(final)


def _count(index_key: str, rows: int, processor: Processor, final: Path) -> None:
    started = time.monotonic()
    parts = final.with_suffix(".parts")
    parts.mkdir(exist_ok=True)
    ranges = [range(start, min(rows, start + ROWS_PER_PART)) for start in range(0, rows, ROWS_PER_PART)]
    missing = [part for part in ranges if not _part(parts, part).is_file()]
    processes = min(MAX_PROCESSES, usable_cores(), len(missing) // PARTS_PER_PROCESS)
    job = (processor, final.parent, index_key, parts)
    with _progress(len(missing)) as advance:
        if processes > 1:
            _count_in_processes(job, [missing[n::processes] for n in range(processes)], advance)
        else:
            for part in missing:
                _write_part(job, part)
                advance(1)
    with atomic_directory(final) as directory:
        _join([_part(parts, part) for part in ranges], directory)
    shutil.rmtree(parts)
    logger.info("counted the tokens of %d samples in %.1f s", rows, time.monotonic() - started)


@contextmanager
def _progress(parts: int) -> Iterator[Callable[[int], None]]:
    """A bar for what takes longer than a moment."""
    with Progress(console=Console(stderr=True), transient=True, disable=parts <= PARTS_PER_PROCESS) as progress:
        bar = progress.add_task("counting tokens", total=parts)
        yield lambda done: progress.advance(bar, done)


Job = tuple[Processor, Path, str, Path]


def _count_in_processes(job: Job, shares: Sequence[list[range]], advance: Callable[[int], None]) -> None:
    """Have each of `shares` (the rows of parts) written by a process. Raises UserError when one of them fails."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(mllm.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
        **{"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""},
    }
    processes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as directory, open(Path(directory) / "errors", "w+b") as errors:
        try:
            for number, share in enumerate(shares):
                file = Path(directory) / f"{number}.job"
                file.write_bytes(pickle.dumps((job, share)))
                command = [sys.executable, "-m", __name__, str(file)]
                processes.append(
                    subprocess.Popen(
                        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors
                    )
                )
            waiting = [_part(job[3], part) for share in shares for part in share]
            while waiting:
                time.sleep(0.1)
                left = [part for part in waiting if not part.is_file()]
                advance(len(waiting) - len(left))
                waiting = left
                _check(processes, errors)
        finally:
            for process in processes:
                process.kill()
                process.communicate()


def _check(processes: Sequence[subprocess.Popen[bytes]], errors: IO[bytes]) -> None:
    """Raise UserError for a process that ended by an error, with the last line of what was written to `errors`."""
    failed = next((process.returncode for process in processes if process.poll() not in (None, 0)), None)
    if failed is not None:
        errors.seek(0)
        words = errors.read().decode(errors="replace").strip().splitlines() if failed > 0 else []
        raise UserError(
            f"a process that counts tokens {'failed' if failed > 0 else f'was killed by signal {-failed}'}"
            f"{': ' + words[-1] if words else ''}; what was counted is kept, start the same command again"
        )


def _part(parts: Path, rows: range) -> Path:
    return parts / f"{rows.start}-{rows.stop}.npz"


def _write_part(job: Job, rows: range) -> None:
    """Count the samples of one part and write it whole."""
    processor, directory, index_key, parts = job
    buffer = io.BytesIO()
    np.savez(buffer, **_counted(read_cached_index(directory, index_key), rows, processor))  # type: ignore[arg-type]
    temporary = parts / f".{rows.start}.{os.getpid()}.tmp"
    with open(temporary, "wb") as file:
        file.write(buffer.getbuffer())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(_part(parts, rows))


def _counted(index: SampleIndex, rows: range, processor: Processor) -> dict[str, np.ndarray]:
    """The arrays of `rows`; `faults` is JSON in bytes."""
    figures: dict[str, list[Any]] = {name: [] for name in ARRAYS}
    faults = []
    for row in rows:
        length = first = 0
        try:
            tokens = render_whole(index[row], processor)
        except BadSampleError as error:
            faults.append((row, error.kind, error.reason))
        except UserError as error:
            faults.append((row, "", str(error)))
        else:
            length, first = len(tokens.input_ids), tokens.supervised.index(True)
            spans = zip(tokens.image_spans, tokens.visuals, strict=True)
            figures["spans"] += [(*span, visual.tile_count) for span, visual in spans]
            figures["openings"] += _without_repeats(tokens.input_ids[:first], tokens.image_spans)
        figures["length"].append(length)
        figures["first_supervised"].append(first)
        figures["span_ends"].append(len(figures["spans"]))
        figures["opening_ends"].append(len(figures["openings"]))
    arrays = {
        name: np.asarray(values, dtype=np.int64 if "ends" in name else np.int32) for name, values in figures.items()
    }
    arrays["spans"] = arrays["spans"].reshape(-1, 3)
    return arrays | {"faults": np.frombuffer(json.dumps(faults).encode(), dtype=np.uint8)}


def _without_repeats(ids: Sequence[int], image_spans: Sequence[tuple[int, int]]) -> list[int]:
    """`ids` with one image token an image."""
    kept: list[int] = []
    begin = 0
    for start, count in image_spans:
        if start < len(ids):
            kept += ids[begin : start + 1]
            begin = start + count
    return [*kept, *ids[begin:]]


def _join(parts: Sequence[Path], directory: Path) -> None:
    """Write the arrays of all parts, one after another, each to a file of its own."""
    for name in ARRAYS:
        pieces = [_loaded(part, name) for part in parts]
        shape = (sum(len(piece) for piece in pieces), *pieces[0].shape[1:])
        joined = np.lib.format.open_memmap(directory / f"{name}.npy", mode="w+", dtype=pieces[0].dtype, shape=shape)
        begin = total = 0
        for piece in pieces:
            joined[begin : begin + len(piece)] = piece + total
            begin += len(piece)
            total += int(piece[-1]) if name.endswith("ends") else 0
        joined.flush()
    faults = [fault for part in parts for fault in json.loads(_loaded(part, "faults").tobytes())]
    (directory / "faults.json").write_text(json.dumps(faults, ensure_ascii=False), encoding="utf-8")


def _loaded(part: Path, name: str) -> np.ndarray:
    with np.load(part) as arrays:
        return arrays[name]


def _main() -> None:
    job, share = pickle.loads(Path(sys.argv[1]).read_bytes())
    # Standard input ends when the process that asked does, however it ended.
    threading.Thread(target=lambda: os.read(0, 1) or os._exit(1), daemon=True).start()
    for rows in share:
        _write_part(job, rows)


if __name__ == "__main__":
    _main()
