"""What a synthesis run wrote, in counts."""

from collections import Counter
from typing import Any

from pydantic import BaseModel, ConfigDict


class SynthReport(BaseModel):
    """`files` maps a file to its lines and their counts; `dropped` maps a source to what its filters refused.

    `requested` and `written` count samples by "source/kind": where written is less, the source had no more.
    """

    model_config = ConfigDict(frozen=True)

    data_hash: str
    seed: int
    backend: str
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
