"""FAISS indexes of normalized features: which kind for how many, how hard one looks, and reading without loading.

N vectors, Q queries, E embedding width. All products are inner products, which of normalized features are cosines.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from mllm.errors import UserError

# Up to so many vectors all are compared: some 15 ms for 512 numbers each on a core.
MOST_EXACT = 50_000
# Of what is learned (centres of lists, codebooks), FAISS asks for some dozens of vectors a centre.
SAMPLE = 100_000
ADDED_AT_ONCE = 65_536
EFFORTS = tuple(2**power for power in range(0, 11))
# Below this share most neighbours in a graph are left out, so all vectors that may be found are compared.
LEAST_SHARE_OF_GRAPH = 0.05


def load_faiss() -> Any:
    """Import FAISS. Raises UserError without it."""
    try:
        import faiss
    except ImportError:
        raise UserError("an image index needs faiss: pip install 'mllm[search]'") from None
    return faiss


def chosen_factory(count: int) -> str:
    """Return the factory string for so many vectors: all compared up to 50,000, else lists of one byte a number."""
    if count <= MOST_EXACT:
        return "Flat"
    return f"IVF{2 ** round(math.log2(4 * math.sqrt(count)))},SQ8"


def empty_vectors(factory: str, width: int) -> Any:
    """Make an index by FAISS's factory string. Raises UserError for a string that FAISS can't read, or not for this width."""
    faiss = load_faiss()
    try:
        return faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        reason = str(error).rpartition(": ")[2].rstrip("')\"")
        raise UserError(
            f"--factory {factory}: FAISS makes no index of it for {width} numbers a feature ({reason})"
        ) from None


def filled_vectors(factory: str, features: np.ndarray, sample: int = SAMPLE) -> Any:
    """Make an index of float32 [N, E], which may be memory-mapped; what it learns is learned of `sample` of them at most.

    Raises UserError as `empty_vectors`, and for fewer vectors than the index has centres to learn.
    """
    index = empty_vectors(factory, features.shape[1])
    if not index.is_trained:
        rows = np.random.default_rng(0).permutation(len(features))[:sample]
        try:
            index.train(np.ascontiguousarray(features[np.sort(rows)]))
        except RuntimeError as error:
            reason = str(error).rpartition(": ")[2]
            raise UserError(f"--factory {factory} can't be learned of {len(rows):,} vectors ({reason})") from None
    add_vectors(index, features)
    return index


def add_vectors(index: Any, features: np.ndarray) -> None:
    for start in range(0, len(features), ADDED_AT_ONCE):
        index.add(np.ascontiguousarray(features[start : start + ADDED_AT_ONCE]))


def save_vectors(index: Any, path: Path) -> None:
    # As bytes: faiss reports a full disk in words of its own.
    load_faiss().serialize_index(index).tofile(path)


def open_vectors(path: Path, is_mapped: bool = True) -> Any:
    """Read an index, memory-mapped where its kind can be (lists, and with FAISS from 1.11 on flat ones and graphs)."""
    faiss = load_faiss()
    if not is_mapped:
        return faiss.read_index(str(path))
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_READ_ONLY | getattr(faiss, "IO_FLAG_MMAP_IFC", 0))
    except RuntimeError:  # of lists, which have a flag of their own
        return faiss.read_index(str(path), faiss.IO_FLAG_READ_ONLY | faiss.IO_FLAG_MMAP)


def search_vectors(
    index: Any, queries: np.ndarray, k: int, effort: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k nearest of each query [Q, E]: cosines [Q, k] and places [Q, k], best first; -1 where there are no more.

    effort: lists that are looked into, or candidates of a graph; without meaning where all are compared. allowed: int64
    places, the only ones to be found; the effort grows as their share falls, so that as many of them are met.
    """
    if allowed is not None and not len(allowed):
        return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    share = 1.0 if allowed is None else len(allowed) / index.ntotal
    selector = None if allowed is None else load_faiss().IDSelectorBatch(allowed)
    graph = _graph(index)
    if graph is not None and share < LEAST_SHARE_OF_GRAPH:
        index = load_faiss().downcast_index(graph.storage)
    scores, places = index.search(queries, min(k, index.ntotal), params=_parameters(index, effort / share, selector))
    return scores, places


def _graph(index: Any) -> Any:
    index = load_faiss().downcast_index(index)
    return index if hasattr(index, "hnsw") else None


def _parameters(index: Any, effort: float, selector: Any) -> Any:
    faiss = load_faiss()
    index, given = faiss.downcast_index(index), {} if selector is None else {"sel": selector}
    if hasattr(index, "refine_index"):
        return faiss.IndexRefineSearchParameters(
            k_factor=4, base_index_params=_parameters(index.base_index, effort, selector)
        )
    if isinstance(index, faiss.IndexPreTransform):
        return faiss.SearchParametersPreTransform(index_params=_parameters(index.index, effort, selector))
    if hasattr(index, "nprobe"):
        return faiss.SearchParametersIVF(nprobe=min(index.nlist, math.ceil(effort)), **given)
    if hasattr(index, "hnsw"):
        return faiss.SearchParametersHNSW(efSearch=min(index.ntotal, math.ceil(effort)), **given)
    return faiss.SearchParameters(**given)


def exact_places(features: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """Find the places [Q, k] of the nearest by comparing all float32 [N, E], some at a time."""
    faiss = load_faiss()
    best = np.full((len(queries), k), -np.inf, np.float32)
    places = np.full((len(queries), k), -1, np.int64)
    for start in range(0, len(features), ADDED_AT_ONCE):
        found = faiss.knn(
            queries, np.ascontiguousarray(features[start : start + ADDED_AT_ONCE]), min(k, len(features) - start),
            metric=faiss.METRIC_INNER_PRODUCT,
        )  # fmt: skip
        both, of_both = np.concatenate([best, found[0]], 1), np.concatenate([places, found[1] + start], 1)
        order = np.argsort(-both, axis=1, kind="stable")[:, :k]
        best, places = np.take_along_axis(both, order, 1), np.take_along_axis(of_both, order, 1)
    return places


def recall_of(index: Any, queries: np.ndarray, exact: np.ndarray, effort: int) -> float:
    """Return the share of the true nearest [Q, k] that a search finds among as many."""
    _, places = search_vectors(index, queries, exact.shape[1], effort)
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(places, exact, strict=True)]))


def sufficient_effort(
    index: Any, features: np.ndarray, recall: float, k: int = 10, count: int = 200
) -> tuple[int, float]:
    """Return the least effort, a power of two, that finds a share `recall` of the true k nearest, and the share it finds.

    Queries are `count` of the vectors themselves; where no effort is enough, the greatest is returned.
    """
    rows = np.random.default_rng(1).permutation(len(features))[:count]
    queries = np.ascontiguousarray(features[np.sort(rows)])
    exact = exact_places(features, queries, min(k, len(features)))
    found = 0.0
    for effort in EFFORTS:
        found = recall_of(index, queries, exact, effort)
        if found >= recall:
            return effort, found
    return EFFORTS[-1], found
