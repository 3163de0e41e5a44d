"""The files of a run of the generator: images named by content, JSON lines, a hash over all, and a report in counts."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from data_recipes.demo.drafts import ClipPair, Drafted, HeldoutQuestion
from data_recipes.demo.picture import Picture

REPORT_NAME = "synth_report.json"


class ImageStore:
    """Writes each distinct image once, bytes as they are, named by the first 16 hex digits of their SHA-1."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "images").mkdir()
        self._names: set[str] = set()

    def add(self, picture: Picture) -> str:
        """The image's path relative to the output directory."""
        name = f"images/{hashlib.sha1(picture.data).hexdigest()[:16]}{picture.suffix}"
        if name not in self._names:
            (self.root / name).write_bytes(picture.data)
            self._names.add(name)
        return name

    def __len__(self) -> int:
        return len(self._names)


def sample_rows(drafts: Iterable[Drafted], store: ImageStore) -> list[dict[str, Any]]:
    """Checked samples as JSON values, with their images stored."""
    rows = []
    for item in drafts:
        shows_image = any(message.image_count for message in item.sample.messages)
        images = (store.add(item.picture),) if shows_image else ()
        sample = item.sample.model_copy(update={"images": images})
        sample.check()
        rows.append(sample.model_dump(mode="json"))
    return rows


def pair_rows(pairs: Iterable[ClipPair], store: ImageStore) -> list[dict[str, Any]]:
    return [{"image": store.add(p.picture), "caption": p.caption, "source": p.picture.source} for p in pairs]


def question_rows(questions: Iterable[HeldoutQuestion], store: ImageStore) -> list[dict[str, Any]]:
    return [
        {"id": q.id, "image": store.add(q.picture), "question": q.question, "answer": q.answer, "type": q.type}
        | ({"options": list(q.options)} if q.options else {})
        for q in questions
    ]


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def hash_directory(root: Path) -> str:
    """SHA-256 over names and bytes of all files below `root` in sorted order, the report aside."""
    digest = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file() and p.name != REPORT_NAME):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()


class GeneratorReport(BaseModel):
    """`files` maps a file to its lines and their counts; `dropped` maps a source to what its filters refused.

    `requested` and `written` count samples by "source/kind": where written is less, the source had no more.
    """

    model_config = ConfigDict(frozen=True)

    data_hash: str
    seed: int
    image_count: int
    files: dict[str, dict[str, Any]]
    requested: dict[str, int]
    written: dict[str, int]
    dropped: dict[str, dict[str, int]]
    yes_no_texts: int
    yes_no_unbalanced_texts: list[str]


def count_rows(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Lines, distinct images and counts by source/kind of one file's rows."""
    images = {image for row in rows for image in (row["images"] if "images" in row else [row["image"]])}
    labels = Counter("/".join(row[key] for key in ("source", "kind", "type") if key in row) for row in rows)
    return {"lines": len(rows), "images": len(images), "by_kind": dict(sorted(labels.items()))}


def yes_no_balance(rows: list[dict[str, Any]]) -> dict[str, Counter[str]]:
    """Question text → counts of yes and no over the samples of one turn that are answered so."""
    balance: dict[str, Counter[str]] = {}
    for row in rows:
        for user, assistant in zip(row["messages"][::2], row["messages"][1::2], strict=True):
            answer = assistant["content"][0]["text"]
            if answer in ("yes", "no"):
                balance.setdefault(user["content"][-1]["text"], Counter())[answer] += 1
    return balance
