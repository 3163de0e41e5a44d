"""Time searches in a large index beside comparing all, with the share of the true nearest that they find.

    OMP_NUM_THREADS=2 python benchmarks/search_scale.py --count 1000000 --width 512 --factory 'IVF4096,SQ8' 'IVF4096,PQ64'

Features are synthetic: directions around centres that are as many as every hundredth vector, each a little off, since
vectors without any neighbours make every index look bad and exact copies make it look good. Queries are new directions
around the same centres. Filters let through a tenth and a thousandth of the vectors. Processor seconds stand beside the
wall's, which other work on the machine disturbs.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from measuring import machine, markdown_table

from mllm.contrastive.vectors import (
    exact_places,
    filled_vectors,
    load_faiss,
    open_vectors,
    recall_of,
    save_vectors,
    search_vectors,
    sufficient_effort,
)

SPREAD = 0.7
PER_CENTRE = 100
K = 10
MADE_AT_ONCE = 100_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--factory", nargs="+", default=["IVF4096,SQ8"])
    options = parser.parse_args()
    with TemporaryDirectory() as scratch:
        features, queries = _features(options, Path(scratch) / "features")
        with _timed() as took:
            exact = exact_places(features, queries, K)
        rows = [["all compared", "", "", *_each(took, len(queries)), "", "", "100.0", "", ""]]
        print(rows[-1], flush=True)
        for factory in options.factory:
            rows.append(_row(factory, features, queries, exact, options.recall, Path(scratch) / "index"))
            print(rows[-1], flush=True)
    head = [
        "index",
        "made, CPU s",
        "MiB on disk",
        "ms a query",
        "CPU ms",
        "a tenth, ms",
        "a thousandth, ms",
        "recall@10 %",
    ]
    print(markdown_table([*head, "effort", "of vectors themselves %"], rows))
    print(f"\n{options.count:,} vectors of {options.width}; {machine()}")


def _features(options: argparse.Namespace, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Write the features to a file, which is mapped; return them and the queries."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((max(1, options.count // PER_CENTRE), options.width), np.float32)

    def around(count: int) -> np.ndarray:
        found = centres[generator.integers(len(centres), size=count)]
        found = found + SPREAD * generator.standard_normal((count, options.width), np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    with open(path, "wb") as file:
        for start in range(0, options.count, MADE_AT_ONCE):
            file.write(around(min(MADE_AT_ONCE, options.count - start)).tobytes())
    return np.memmap(path, np.float32, "r").reshape(options.count, options.width), around(options.queries)


def _row(
    factory: str, features: np.ndarray, queries: np.ndarray, exact: np.ndarray, recall: float, path: Path
) -> list[str]:
    with _timed() as made:
        index = filled_vectors(factory, features)
    effort, found = sufficient_effort(index, features, recall)
    save_vectors(index, path)
    mapped = open_vectors(path)
    times = []
    for share in (1.0, 0.1, 0.001):
        allowed = None if share == 1 else np.arange(0, len(features), round(1 / share))
        times.append(_searches(lambda q, a=allowed: search_vectors(mapped, q, K, effort, a), queries))
    size = path.stat().st_size / 2**20
    filtered = [_each(took, len(queries))[0] for took in times[1:]]
    told = f"{100 * recall_of(mapped, queries, exact, effort):.1f}"
    return [factory, f"{made[1]:.0f}", f"{size:.0f}", *_each(times[0], len(queries)), *filtered, told, str(effort),
            f"{100 * found:.1f}"]  # fmt: skip


def _searches(search: Callable[[np.ndarray], Any], queries: np.ndarray) -> list[float]:
    """Time one query at a time, as a user asks."""
    search(queries[:1])
    with _timed() as took:
        for query in queries:
            search(query[None])
    return took


@contextmanager
def _timed() -> Iterator[list[float]]:
    """Give a list of seconds and processor seconds, filled when the block ends."""
    took: list[float] = []
    wall, processor = time.perf_counter(), time.process_time()
    yield took
    took += [time.perf_counter() - wall, time.process_time() - processor]


def _each(took: list[float], count: int) -> list[str]:
    return [f"{1000 * seconds / count:.2f}" for seconds in took]


if __name__ == "__main__":
    load_faiss()
    main()
