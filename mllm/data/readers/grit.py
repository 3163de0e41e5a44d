"""GRIT (Kosmos-2; Peng et al. 2023): captions of pictures of the web, and boxes of the phrases in them.

The release (`zzliang/GRIT`) names pictures by their URLs. What img2dataset makes of it is read: tars, or JSON with the path
of each picture. Each phrase is `[start, end, left, top, right, bottom, score]`: characters of the caption, then shares of the
picture; several boxes of one phrase are as many entries.
"""

from collections.abc import Iterator
from typing import Any

from mllm.conversation.boxes import Region
from mllm.conversation.schema import BoxesPart, Part, Sample, TextPart
from mllm.data.readers.errors import BadRecordError
from mllm.data.readers.fields import asked_about_images, found, image_paths, text_field
from mllm.data.readers.records import record_reader
from mllm.data.readers.refcoco import QUESTION, answered_with
from mllm.data.readers.registry import READERS

DESCRIBE = "Describe the image, and say where things are."
NUMBERS = 7
Span = tuple[int, int]


@READERS.register("grit")
@record_reader
def read_grit(place: str, record: dict[str, Any]) -> Iterator[Sample]:
    """A sample for each picture: its caption, in which each of `noun_chunks` is a place with that name."""
    images, caption = _shown(place, record)
    content: list[Part] = []
    done = 0
    for (start, end), regions in sorted(_phrases(place, record, "noun_chunks", caption).items()):
        if start < done:
            raise BadRecordError(place, f"two of `noun_chunks` share the characters {caption[start:done]!r}")
        content += [TextPart(text=caption[done:start])] if start > done else []
        content.append(BoxesPart(boxes=tuple(regions)))
        done = end
    content += [TextPart(text=caption[done:])] if done < len(caption) else []
    messages = answered_with(content, asked_about_images(len(images), DESCRIBE, ""))
    yield Sample(id=str(record.get("id", place)), messages=messages, images=images, kind="grounded_caption")


@READERS.register("grit_refer")
@record_reader
def read_grit_expressions(place: str, record: dict[str, Any]) -> Iterator[Sample]:
    """A sample for each of `ref_exps`, which is asked for as `refcoco` asks. The answer is its boxes."""
    images, caption = _shown(place, record)
    for number, ((start, end), regions) in enumerate(_phrases(place, record, "ref_exps", caption).items()):
        boxes = BoxesPart(boxes=tuple(Region(box=region.box) for region in regions))
        messages = answered_with([boxes], asked_about_images(len(images), f"{QUESTION}{caption[start:end]}", ""))
        yield Sample(id=f"{record.get('id', place)}/{number}", messages=messages, images=images, kind="refer")


def _shown(place: str, record: dict[str, Any]) -> tuple[tuple[str, ...], str]:
    """The picture and its caption."""
    images = image_paths(place, record)
    if not images:
        remedy = "the release has URLs alone: download by img2dataset, and read its tars"
        raise BadRecordError(place, f"expected `image`, `caption` and phrases ({remedy}); {found(record)}")
    return images, text_field(place, record, ("caption",))


def _phrases(place: str, record: dict[str, Any], field: str, caption: str) -> dict[Span, list[Region]]:
    """Where each phrase of a field stands in the caption, in order of appearance, and its boxes, named by it."""
    given = record.get(field)
    if not isinstance(given, list) or not all(_is_phrase(item, len(caption)) for item in given):
        form = "[start, end, left, top, right, bottom, score]"
        raise BadRecordError(place, f"expected `{field}` to be a list of {form}, within the caption")
    phrases: dict[Span, list[Region]] = {}
    for start, end, *corners in given:
        span = int(start), int(end)
        region = Region(label=caption[slice(*span)], box=tuple(corners[:4]))
        phrases.setdefault(span, []).append(region)
    return phrases


def _is_phrase(item: Any, characters: int) -> bool:
    is_listed = isinstance(item, list) and len(item) == NUMBERS and all(isinstance(n, (int, float)) for n in item)
    return is_listed and 0 <= item[0] < item[1] <= characters and item[0] % 1 == item[1] % 1 == 0
