"""A run of the generator: scenes of both splits drawn, their files written, and what was written counted."""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_recipes.demo.writing import hash_directory, write_lines
from data_recipes.sees_more.drafts import Draft, Frames
from data_recipes.sees_more.scenes import SCENES
from data_recipes.sees_more.settings import GeneratorSettings, SceneCounts
from data_recipes.sees_more.vocabulary import Split, splits
from mllm.data.writers import record_of
from mllm.files import atomic_directory, write_json_atomically
from mllm.outputs import check_directory
from mllm.synthesis.prompts import seeded_random

BY = "python -m data_recipes.sees_more"
REPORT_NAME = "report.json"


def generate(config: GeneratorSettings) -> dict[str, Any]:
    """Write `config.output` whole or not at all; returns the report, which is also in `report.json`.

    The directory holds, of each kind of scene that is counted, a file of samples, `KIND.jsonl`, for some another of the same
    samples without pictures, `KIND_in_words.jsonl`, and `heldout/KIND.jsonl` with questions, `heldout/KIND_boxes.jsonl` with
    those for places; the rest is in `media/`. Paths in them are relative to the file's folder. An earlier run's directory is
    replaced. Raises UserError where it holds anything else.
    """
    check_directory(config.output, BY)
    train, heldout = splits(config.seed, config.heldout_things)
    with atomic_directory(config.output, BY) as root:
        store = MediaStore(root)
        files: dict[str, list[dict[str, Any]]] = {}
        for kind in tqdm(SCENES, desc="drawing", unit="kind", disable=None):
            trained = draw(kind, train, config.trained, config.seed)
            files[f"{kind}.jsonl"] = [
                record_of(sample) for draft in trained for sample in draft.samples(store.add(draft.media))
            ]
            files[f"{kind}_in_words.jsonl"] = [
                record_of(sample) for draft in trained for sample in draft.samples_in_words()
            ]
            questions = [
                line
                for draft in draw(kind, heldout, config.asked, config.seed)
                for line in draft.questions(tuple(f"../{file}" for file in store.add(draft.media)))
            ]
            # Places are scored otherwise than words: each has a file of its own.
            files[f"heldout/{kind}.jsonl"] = [line for line in questions if "answer" in line]
            files[f"heldout/{kind}_boxes.jsonl"] = [line for line in questions if "answers" in line]
        files = {name: rows for name, rows in files.items() if rows}
        for name, rows in files.items():
            write_lines(root / name, rows)
        report = {
            "data_hash": hash_directory(root),
            "seed": config.seed,
            "files": {name: len(rows) for name, rows in files.items()},
            "answers": {name: _answers(rows) for name, rows in files.items() if name.startswith("heldout/")},
        }
        write_json_atomically(root / REPORT_NAME, report)
    return report


def draw(kind: str, split: Split, counts: SceneCounts, seed: int) -> list[Draft]:
    """As many scenes of a kind and a split as are counted, each from a seed of its own."""
    names = [f"{kind}-{split.name}-{seed}-{number}" for number in range(getattr(counts, kind))]
    return [SCENES[kind](name, split, seeded_random(seed, name)) for name in names]


def _answers(rows: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Type → how often each answer in words is right, the commonest first."""
    kinds: dict[str, Counter[str]] = {}
    for row in rows:
        if "answer" in row:
            kinds.setdefault(row["type"], Counter())[row["answer"]] += 1
    return {kind: dict(kinds[kind].most_common(8)) for kind in sorted(kinds)}


class MediaStore:
    """Writes pictures, and clips as folders of frames, named by their content below `media/`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        (root / "media").mkdir()

    def add(self, media: tuple[bytes | Frames, ...]) -> tuple[str, ...]:
        """Paths relative to the root."""
        return tuple(self._picture(m) if isinstance(m, bytes) else self._clip(m) for m in media)

    def _picture(self, data: bytes) -> str:
        name = f"media/{hashlib.sha1(data).hexdigest()[:16]}.png"
        (self._root / name).write_bytes(data)
        return name

    def _clip(self, frames: Frames) -> str:
        name = f"media/{hashlib.sha1(b''.join(frames)).hexdigest()[:16]}"
        (self._root / name).mkdir(exist_ok=True)
        for number, frame in enumerate(frames):
            (self._root / name / f"{number}.png").write_bytes(frame)
        return name
