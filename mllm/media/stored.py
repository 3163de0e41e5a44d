"""Images that lie inside a larger file: a reference to one is a string, as a path is, and costs nothing until it is read.

`tar:OFFSET:SIZE:PATH` is a member of an uncompressed tar, `parquet:ROW:NUMBER:PATH` the NUMBER-th image of a row whose column
`images` (or `image`) holds `{bytes, path}`, as the Hub's data sets do, or the bytes alone.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

from mllm.errors import UserError

IMAGE_COLUMNS = ("images", "image")
SCHEMES = ("tar:", "parquet:")


def tar_reference(path: str, offset: int, size: int) -> str:
    return f"tar:{offset}:{size}:{path}"


def parquet_reference(path: str, row: int, number: int) -> str:
    return f"parquet:{row}:{number}:{path}"


def is_stored(reference: str) -> bool:
    return reference.startswith(SCHEMES)


def holder_of(reference: str) -> str:
    """The path of the file that a reference points into."""
    return reference.split(":", 3)[-1]


def file_of(image: Path | str) -> Path:
    """The file that an image is, or lies in."""
    return Path(holder_of(image) if isinstance(image, str) and is_stored(image) else image)


def read_stored(reference: str, max_bytes: int) -> bytes:
    """The bytes of an image. Raises UserError when the file isn't as it was when the reference was made."""
    try:
        kind, first, second, path = reference.split(":", 3)
        if kind == "tar":
            if not 0 <= int(second) <= max_bytes:
                raise UserError(f"image {reference!r} has {second} bytes; the limit is {max_bytes}")
            with open(path, "rb") as file:
                file.seek(int(first))
                return file.read(int(second))
        image = _parquet_image(path, int(first), int(second))
    except UserError:
        raise
    except Exception as error:
        # What pyarrow raises for a damaged page is listed nowhere; any of it means that the image can't be had.
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"image {reference!r} can't be read: {reason}") from None
    return image


def image_column(schema: Any) -> str | None:
    """The column of a parquet file that holds the bytes of images, by its Arrow schema; None where there is none."""
    names = (name for name in IMAGE_COLUMNS if name in schema.names)
    return next((name for name in names if _is_binary(element_type(schema.field(name).type))), None)


def element_type(kind: Any) -> Any:
    """The type of the items of a list, of anything else the type itself."""
    return kind.value_type if is_list(kind) else kind


def is_list(kind: Any) -> bool:
    import pyarrow.types as types

    return any(is_kind(kind) for is_kind in (types.is_list, types.is_large_list, types.is_fixed_size_list))


def _is_binary(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        return any(field.name == "bytes" and _is_binary(field.type) for field in kind)
    return any(is_kind(kind) for is_kind in (types.is_binary, types.is_large_binary, types.is_fixed_size_binary))


def _parquet_image(path: str, row: int, number: int) -> bytes:
    _, starts, column = _parquet_file(path)
    group = next(g for g in reversed(range(len(starts))) if starts[g] <= row)
    value = _row_group(path, group, column)[row - starts[group]].as_py()
    image = value[number] if isinstance(value, list) else value
    content = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(content, bytes):
        raise ValueError(f"row {row} holds no bytes")
    return content


@lru_cache(maxsize=16)
def _parquet_file(path: str) -> tuple[Any, list[int], str]:
    """The open file, the first row of each of its row groups, and the column of images."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path, memory_map=True)
    starts = [0]
    for group in range(file.metadata.num_row_groups):
        starts.append(starts[-1] + file.metadata.row_group(group).num_rows)
    return file, starts[:-1], image_column(file.schema_arrow) or IMAGE_COLUMNS[0]


@lru_cache(maxsize=4)
def _row_group(path: str, group: int, column: str) -> Any:
    """One column of a row group: neighbours are often wanted together, and a row group is what can be read."""
    file, _, _ = _parquet_file(path)
    return file.read_row_group(group, columns=[column])[column].combine_chunks()
