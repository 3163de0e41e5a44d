"""Shards of pairs as img2dataset writes them, and batches of them."""

import io
import json

from PIL import Image

from mllm.contrastive.run import _build_batcher
from mllm.contrastive.settings import ContrastiveSettings
from mllm.settings import validate_settings
from tests.helpers.clip import settings
from tests.helpers.containers import COLOURS, write_tar

KINDS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
BROKEN = b"\xff\xd8\xff\xe0 no picture"


def picture(number, kind="png", size=(20, 16)):
    buffer = io.BytesIO()
    Image.new("RGB", size, COLOURS[number % len(COLOURS)]).save(buffer, KINDS[kind])
    return buffer.getvalue()


def members(numbers, broken=(), kinds=tuple(KINDS)):
    """The members of a shard with an image, a text and a JSON for each number; those `broken` have no readable image."""
    found = []
    for number in numbers:
        kind = kinds[number % len(kinds)]
        caption = f"caption {number}"
        facts = {"caption": caption, "url": f"http://x.org/{number}.jpg", "key": f"{number:05d}", "status": "success"}
        found += [
            (f"{number:05d}.{kind}", BROKEN if number in broken else picture(number, kind)),
            (f"{number:05d}.txt", caption.encode()),
            (f"{number:05d}.json", json.dumps(facts | {"width": 20, "height": 16, "error_message": None}).encode()),
        ]
    return found


def write_shards(root, sizes, broken=()):
    """Shards 00000.tar, 00001.tar … of so many pairs each, numbered on; returns the list of them in braces."""
    root.mkdir(parents=True, exist_ok=True)
    first = 0
    for shard, size in enumerate(sizes):
        write_tar(root / f"{shard:05d}.tar", members(range(first, first + size), broken))
        first += size
    return str(root / f"{{00000..{len(sizes) - 1:05d}}}.tar")


def stream_of(path, count, **changes):
    return {"path": path, "stream": True, "count": count, "shuffle_buffer": 6, "lanes": 3} | changes


def clip_values(pairs, run_dir, **changes):
    """Settings of a tiny run on `pairs`, a path or a list of sources; changes are `section__key`."""
    values = settings(run_dir / "none.jsonl", run_dir, epochs=1).model_dump(exclude_unset=True)
    values["data"] = {"pairs": pairs}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        values.setdefault(section, {})[name] = value
    return values


def batcher_of(pairs, run_dir, **changes):
    return _build_batcher(validate_settings(ContrastiveSettings, clip_values(pairs, run_dir, **changes), "test"))[0]
