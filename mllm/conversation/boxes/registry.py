"""What a box format is: a pair of functions between places and text; and the table of names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mllm.conversation.boxes.region import Kind, Region
from mllm.errors import ConversationRefusedError
from mllm.media.frame import Frame
from mllm.registry import Registry


@dataclass(frozen=True)
class BoxFormat:
    """How a model writes places.

    kinds: the shapes that it has. to_text: writes places, which lie within the image. to_regions: reads all places that a
    text names, in their order, in shares of the image: one may lie outside of it, where the text says so. Both are told what
    the image became (`Frame`), which decides about the numbers of some formats.
    """

    kinds: frozenset[Kind]
    to_text: Callable[[Sequence[Region], Frame], str]
    to_regions: Callable[[str, Frame], list[Region]]

    def write(self, regions: Sequence[Region], frame: Frame) -> str:
        """Write places, each cut at the edges of the image. Raises ConversationRefusedError for a shape that it lacks."""
        alien = next((region.kind for region in regions if region.kind not in self.kinds), None)
        if alien is not None:
            raise ConversationRefusedError(
                f"this box format has no {alien}; it writes: {', '.join(sorted(self.kinds))} (model.box_format)"
            )
        return self.to_text([region.clipped() for region in regions], frame)

    def read(self, text: str, frame: Frame) -> list[Region]:
        """Read all places that a text names, in their order; none where it names none."""
        return self.to_regions(text, frame)


BOX_FORMATS: Registry[BoxFormat] = Registry("box format")
DEFAULT_BOX_FORMAT = "llava"
