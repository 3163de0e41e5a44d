"""The layout of the_cauldron and FineVision: `images`, and `texts` of `{user, assistant}` that share them."""

from collections.abc import Iterator
from typing import Any

from mllm.conversation.schema import Sample
from mllm.data.readers.errors import BadRecordError
from mllm.data.readers.fields import found, media_of, place_media, placeholder_fault, with_system
from mllm.data.readers.records import record_reader
from mllm.data.readers.registry import READERS


@READERS.register("cauldron")
@record_reader
def read_cauldron(place: str, record: dict[str, Any]) -> Iterator[Sample]:
    """A sample of a record: its pairs are turns of one conversation, its images come before the first question.

    An `<image>` in a question is one of the images, where it stands. The source is the record's, or that of its first pair.
    """
    media = media_of(place, record)
    pairs = record.get("texts")
    if not isinstance(pairs, list) or not all(isinstance(pair, dict) for pair in pairs):
        raise BadRecordError(place, f"expected `texts`, a list of user and assistant; {found(record)}")
    turns = [(role, pair.get(role)) for pair in pairs for role in ("user", "assistant")]
    if not all(isinstance(text, str) for _, text in turns):
        keys = ", ".join(sorted({str(key) for pair in pairs for key in pair}))
        raise BadRecordError(place, f"a pair of `texts` needs `user` and `assistant` (texts); found {keys}")
    messages = place_media(place, [(role, str(text)) for role, text in turns], media)
    source = record.get("source") or next((pair["source"] for pair in pairs if pair.get("source")), "")
    yield Sample(
        id=str(record.get("id", place)),
        messages=with_system(record, messages),
        images=media.in_order(messages),
        source=str(source),
        fault=placeholder_fault(record, messages),
    )
