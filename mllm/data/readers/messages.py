"""The project's own schema, which is TRL's and the Hub's: `messages` of `{role, content}` and `images`."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from mllm.conversation.schema import Sample
from mllm.data.readers import READERS
from mllm.data.readers.records import read_records
from mllm.errors import UserError

FIELDS = ("id", "messages", "images", "source", "kind")


@READERS.register("messages")
def read_messages(path: Path | str) -> Iterator[Sample]:
    """Samples of records in the schema; an id is made from the place where none is given; other fields are kept out."""
    for place, record in read_records(path):
        known = {name: record[name] for name in FIELDS if name in record}
        known["id"] = str(known.get("id", place))
        try:
            yield Sample.model_validate(known)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UserError(f"{place}: {where}: {first['msg']}") from None
