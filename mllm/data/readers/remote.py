"""Records behind a URL, read as they come by `datasets`; nothing is kept on the disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mllm.data.readers.fields import without_nulls
from mllm.errors import UserError

BUILDERS = {".json": "json", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet"}


def read_remote(url: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) pairs of JSON lines or parquet rows. Raises UserError when the file can't be opened or read."""
    builder = BUILDERS.get(Path(url).suffix)
    if builder is None:
        raise UserError(f"{url}: only {', '.join(BUILDERS)} can be streamed from a URL")
    from datasets import load_dataset

    try:
        for number, record in enumerate(load_dataset(builder, data_files=url, split="train", streaming=True), 1):
            if any(isinstance(record.get(name), dict) for name in ("image", "images")):
                raise UserError(f"{url}: holds images, which can't be streamed from a URL; download the file")
            yield f"{url}:{number}", without_nulls(record)
    except UserError:
        raise
    except Exception as error:
        # What a file system behind a URL raises is its own affair: any of it means that the file can't be had.
        raise UserError(f"{url}: can't be streamed: {type(error).__name__}: {error}") from None
