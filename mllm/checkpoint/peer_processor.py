"""A processor of transformers as it is, also where the library that its videos need isn't installed.

transformers makes none whose class takes a video processor without torchvision, though images and text ask nothing of that.
Here such a part is left out, and the processor prepares all else as it always does.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, processor_class_from_name

from mllm.checkpoint.parts import first_line
from mllm.errors import UserError

PARTS = frozenset({"image_processor", "tokenizer"})


def can_show_videos() -> bool:
    """Whether transformers can make the processors of videos here."""
    return find_spec("torchvision") is not None


def without_other_parts(kind: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """`kind` of which each part but image processor and tokenizer may be None."""

    def own_parts(cls: type[ProcessorMixin], /, source: Any, processor_dict: Any = None, **options: Any) -> list[Any]:
        made = {
            "image_processor": AutoImageProcessor.from_pretrained(source, backend="pil"),
            "tokenizer": AutoTokenizer.from_pretrained(source),
        }
        return [made.get(name) for name in cls.get_attributes()]

    def save(self: Any, directory: Any, **options: Any) -> Any:
        # What it is saved as has no word of the parts that aren't there.
        self.get_attributes = lambda: [name for name in kind.get_attributes() if getattr(self, name) is not None]
        try:
            return kind.save_pretrained(self, directory, **options)
        finally:
            del self.get_attributes

    changed = {
        "__module__": kind.__module__,
        "check_argument_for_proper_class": lambda self, name, part: None,
        "_get_arguments_from_pretrained": classmethod(own_parts),
        "save_pretrained": save,
    }
    return type(kind.__name__, (kind,), changed)


def read_peer_processor(source: Path) -> ProcessorMixin:
    """The processor of a directory that transformers wrote. Raises UserError where it has none or it can't be made."""
    try:
        kind = _processor_class(source)
        if kind is not None and not can_show_videos() and not PARTS.issuperset(kind.get_attributes()):
            return without_other_parts(kind).from_pretrained(source)
        return AutoProcessor.from_pretrained(source)
    except (OSError, ValueError, TypeError, KeyError, ImportError, AttributeError) as error:
        line = first_line(error)
        if isinstance(error, ImportError) or "torchvision" in line:
            line += "; it needs a package that isn't there"
        raise UserError(f"{source}: no processor could be loaded: {line}") from None


def _processor_class(source: Path) -> type[ProcessorMixin] | None:
    """The class that its files name, or else transformers' tables for its configuration; None where neither does."""
    name = ProcessorMixin.get_processor_dict(str(source))[0].get("processor_class")
    if name:
        return processor_class_from_name(name)
    return PROCESSOR_MAPPING.get(type(AutoConfig.from_pretrained(source)), None)
