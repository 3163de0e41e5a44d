"""How often concepts are named in captions, and whether the classes that are named often are those that are told best.

Which concepts captions leave out is what a contrastive model can't learn of its images (Cai et al. 2025).
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mllm.contrastive.zeroshot import read_lines
from mllm.data.files import files_of
from mllm.data.readers.json_lines import text_lines
from mllm.data.readers.records import read_records
from mllm.errors import UserError

CAPTION_FIELDS = ("caption", "TEXT", "text", "txt", "alt_text", "title")
COLUMNS = ("concept", "group", "count", "percent")
WORD = re.compile(r"\w+")
BINS = 4


@dataclass(frozen=True)
class Concept:
    """A name, the group that it is of ("" without any), and the words that count as it; its name is one of them."""

    name: str
    group: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Frequency:
    """How many captions name a concept, and what share of all that is."""

    concept: str
    group: str
    count: int
    percent: float


def read_concepts(path: Path | str) -> list[Concept]:
    """Read names, one a line; or YAML of names, of group → names, or of group → name → words that count as it, too."""
    if Path(path).suffix not in (".yaml", ".yml", ".json"):
        return [Concept(name, "", (name,)) for name in read_lines(path, "concept")]
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"concept file {path} can't be read: {str(error).splitlines()[0]}") from None
    found = list(_concepts(values, "", path))
    names = [concept.name for concept in found]
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None or not found:
        raise UserError(f"concept file {path}: " + ("it is empty" if twice is None else f"{twice!r} is named twice"))
    return found


def _concepts(values: Any, group: str, path: Path | str) -> Iterator[Concept]:
    if isinstance(values, list):
        for name in values:
            yield Concept(str(name), group, (str(name),))
    elif isinstance(values, dict):
        for name, below in values.items():
            if group and isinstance(below, list):
                yield Concept(str(name), group, (str(name), *map(str, below)))
            elif not group:
                yield from _concepts(below, str(name), path)
            else:
                raise UserError(f"concept file {path}: {name!r} in {group!r} has no list of words")
    else:
        raise UserError(f"concept file {path}: expected names, group: names, or group: name: words")


def caption_files(sources: Sequence[Path | str]) -> list[Path]:
    """List the files of captions that sources stand for: of a directory its `.txt` files, else as `files_of` finds them."""
    files: list[Path] = []
    for source in map(Path, sources):
        texts = sorted(source.rglob("*.txt")) if source.is_dir() else []
        files += texts or [Path(file) for file in files_of(str(source), "captions")]
    return files


def read_captions(files: Iterable[Path]) -> Iterator[str]:
    """Read the captions of files as they come: of a `.txt` one a line, of records the first field that is one.

    Raises UserError for a record without any of them.
    """
    for path in files:
        if path.suffix == ".txt":
            yield from (line.strip() for _, line in text_lines(path) if line.strip())
            continue
        for place, record in read_records(path):
            field = next((name for name in CAPTION_FIELDS if isinstance(record.get(name), str)), None)
            if field is not None:
                yield record[field]
            elif not any(name in record for name in CAPTION_FIELDS):
                raise UserError(f"{place}: no caption; expected one of the fields {', '.join(CAPTION_FIELDS)}")


def count_concepts(
    captions: Iterable[str], concepts: Sequence[Concept], within_words: bool = False
) -> tuple[list[Frequency], int]:
    """Count the captions that name each concept, in lower case, and all captions.

    A name counts as whole words, as "ice cream" does in "an ice-cream van"; within_words: also as a part of longer ones, as
    "tea" in "team", which is how the paper's script counts.
    """
    counts: Counter[int] = Counter()
    total = 0
    find = _within(concepts) if within_words else _whole(concepts)
    for caption in captions:
        total += 1
        counts.update(find(caption.lower()))
    if not total:
        raise UserError("there are no captions to count concepts in")
    found = [Frequency(c.name, c.group, counts[n], 100 * counts[n] / total) for n, c in enumerate(concepts)]
    return found, total


def _within(concepts: Sequence[Concept]) -> Callable[[str], set[int]]:
    words = [(word.lower(), number) for number, concept in enumerate(concepts) for word in concept.words]
    return lambda caption: {number for word, number in words if word in caption}


def _whole(concepts: Sequence[Concept]) -> Callable[[str], set[int]]:
    phrases: dict[tuple[str, ...], set[int]] = {}
    for number, concept in enumerate(concepts):
        for word in concept.words:
            phrases.setdefault(tuple(WORD.findall(word.lower())) or (word.lower(),), set()).add(number)
    lengths = sorted({len(phrase) for phrase in phrases})

    def find(caption: str) -> set[int]:
        words = tuple(WORD.findall(caption))
        found: set[int] = set()
        for length in lengths:
            for start in range(len(words) - length + 1):
                found |= phrases.get(words[start : start + length], set())
        return found

    return find


def write_frequencies(frequencies: Sequence[Frequency]) -> str:
    """Write the rows of a CSV file that `read_frequencies` reads."""
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(COLUMNS)
    rows.writerows((f.concept, f.group, f.count, f"{f.percent:.6g}") for f in frequencies)
    return out.getvalue()


def read_frequencies(path: Path | str) -> dict[str, int]:
    """Read concept → captions that name it, of a file of `mllm clip concepts`."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            if not {"concept", "count"} <= set(rows.fieldnames or ()):
                raise ValueError("it has no columns concept and count")
            return {row["concept"].lower(): int(row["count"]) for row in rows}
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is no file of concepts' frequencies ({error}); mllm clip concepts writes one"
        ) from None


def by_frequency(recalls: Mapping[str, float], counts: Mapping[str, int]) -> dict[str, Any]:
    """Compare classes' recalls, by name, with how often captions name them: the rank correlation, and means of quarters.

    Raises UserError where fewer than two classes were counted.
    """
    known = [(counts[name.lower()], value) for name, value in recalls.items() if name.lower() in counts]
    known = [(count, value) for count, value in known if not np.isnan(value)]
    if len(known) < 2:
        raise UserError(
            f"{len(known)} of {len(recalls)} classes are in the file of frequencies; comparing takes two or more"
        )
    known.sort()
    quarters = [part for part in np.array_split(np.array(known), min(BINS, len(known))) if len(part)]
    counted, told = np.array(known).T
    return {
        "classes": len(known),
        "rank_correlation": _rank_correlation(counted, told),
        "quarters": [
            {
                "captions": [int(part[0, 0]), int(part[-1, 0])],
                "classes": len(part),
                "mean_per_class": float(part[:, 1].mean()),
            }
            for part in quarters
        ],
    }


def _rank_correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Compute Spearman's coefficient, equal values sharing their mean rank; None where one side is all equal."""
    ranks = []
    for values in (first, second):
        _, place, count = np.unique(values, return_inverse=True, return_counts=True)
        ends = np.cumsum(count)
        ranks.append((ends - (count - 1) / 2)[place])
    if any(np.ptp(side) == 0 for side in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
