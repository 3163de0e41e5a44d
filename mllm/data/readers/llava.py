"""LLaVA's JSON: `{"id", "image", "conversations": [{"from": "human" | "gpt", "value"}]}`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mllm.conversation.schema import ImagePart, Message, Part, Sample, TextPart
from mllm.data.readers import READERS
from mllm.data.readers.records import read_records
from mllm.errors import UserError

PLACEHOLDER = "<image>"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


@READERS.register("llava")
def read_llava(path: Path | str) -> Iterator[Sample]:
    """Samples of LLaVA records.

    As in LLaVA, the placeholder of a turn moves to its front and the rest is stripped; as many placeholders as the
    sample has images become image parts, in order, and any further one stays text.
    """
    for place, record in read_records(path):
        image = record.get("image")
        images = tuple(image) if isinstance(image, list) else (image,) if image else ()
        turns = record.get("conversations")
        if not isinstance(turns, list) or not all(isinstance(i, str) for i in images):
            raise UserError(f"{place}: expected `conversations` (a list) and `image` (a path or a list of paths)")
        remaining = len(images)
        messages = []
        for turn in turns:
            message, used = _message(place, turn, remaining)
            remaining -= used
            messages.append(message)
        yield Sample(id=str(record.get("id", place)), messages=tuple(messages), images=images)


def _message(place: str, turn: Any, images_left: int) -> tuple[Message, int]:
    if not isinstance(turn, dict) or turn.get("from") not in ROLES or not isinstance(turn.get("value"), str):
        raise UserError(f"{place}: a turn needs `from` ({', '.join(ROLES)}) and `value` (text)")
    role, text = ROLES[turn["from"]], turn["value"]
    used = min(images_left, text.count(PLACEHOLDER)) if role == "user" else 0
    parts: list[Part] = [ImagePart()] * used
    if used:
        text = text.replace(PLACEHOLDER, "", used).strip()
    return Message(role=role, content=(*parts, TextPart(text=text))), used
