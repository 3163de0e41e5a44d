"""The project's own schema, which is TRL's and the Hub's: `messages` of `{role, content}` and `images`."""

from collections.abc import Iterator
from typing import Any

from mllm.conversation.schema import Sample
from mllm.data.readers import READERS
from mllm.data.readers.records import record_reader

FIELDS = ("id", "messages", "images", "source", "kind")


@READERS.register("messages")
@record_reader
def read_messages(place: str, record: dict[str, Any]) -> Iterator[Sample]:
    """Samples of records in the schema; an id is made from the place where none is given; other fields are kept out."""
    known = {name: record[name] for name in FIELDS if name in record}
    known["id"] = str(known.get("id", place))
    yield Sample.model_validate(known)
