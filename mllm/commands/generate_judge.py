"""`mllm generate eval | data | invert | lora`: generators judged, their pictures as data, and generators made one's own."""

from typing import Any

from mllm.commands.generate_data import add_data
from mllm.commands.generate_eval import add_eval
from mllm.commands.generate_personal import add_personal


def add_judging(parts: Any) -> None:
    add_eval(parts)
    add_data(parts)
    add_personal(parts)
