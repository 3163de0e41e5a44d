"""`qwen_vl` and `qwen2_vl`: places in tags, whole numbers of width and height in 1,000 steps.

Qwen-VL (Bai et al. 2023) writes `<ref>the dog</ref><box>(x1,y1),(x2,y2)</box>` and `<quad>` with four corners; its evaluation
divides by 999. Qwen2-VL (Wang et al. 2024) writes the same between `<|box_start|>` and its kin, from 0 to 1000. Tags are text
like any other here: no token is added to a vocabulary.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mllm.conversation.boxes.region import Kind, Region, box_region, region_of
from mllm.conversation.boxes.registry import BOX_FORMATS, BoxFormat
from mllm.conversation.boxes.scanning import NUMBER, numbers_in
from mllm.media.frame import Frame

_POINT = rf"\(\s*{NUMBER}\s*,\s*{NUMBER}\s*\)"
# What follows a `<box>` that was part of the prompt. A third point makes a polygon of it.
_UNTAGGED = re.compile(rf"(?<!\)\s)(?<!\),)(?<!\)){_POINT}\s*,?\s*{_POINT}(?!\s*,?\s*\()")


@dataclass(frozen=True)
class _Tags:
    """whole: the number that the whole width or height is. name, shapes: what opens and what closes."""

    whole: int
    name: tuple[str, str]
    shapes: dict[str, tuple[str, str]]
    kinds: frozenset[Kind]

    def to_text(self, regions: Sequence[Region], frame: Frame) -> str:
        return "".join(self._written(region) for region in regions)

    def _written(self, region: Region) -> str:
        opening, closing = self.shapes["quad" if region.kind == "quad" else "box"]
        corners = ",".join(f"({round(x * self.whole)},{round(y * self.whole)})" for x, y in region.points)
        name = f"{self.name[0]}{region.label}{self.name[1]}" if region.label else ""
        return f"{name}{opening}{corners}{closing}"

    def to_regions(self, text: str, frame: Frame) -> list[Region]:
        """A name holds for all places up to the next one. A tag that is cut off at the end counts as closed there."""
        (named, unnamed), box, quad = map(re.escape, self.name), *self.shapes.values()
        pattern = "|".join(
            (
                rf"{named}(?P<name>.*?){unnamed}",
                *(
                    rf"{re.escape(opening)}(?P<{kind}>.*?)(?:{re.escape(closing)}|$)"
                    for kind, (opening, closing) in (("box", box), ("quad", quad))
                ),
            )
        )
        regions: list[Region] = []
        label, is_tagged = "", False
        for found in re.finditer(pattern, text, re.DOTALL):
            if found["name"] is not None:
                label = found["name"].strip()
                continue
            is_tagged = True
            region = self._read(numbers_in(found["quad"] or found["box"] or ""), found["quad"] is not None, label)
            regions += [region] if region is not None else []
        if not is_tagged:
            spans = (numbers_in(found[0]) for found in _UNTAGGED.finditer(text))
            regions = [box_region([number / self.whole for number in numbers]) for numbers in spans]
        return regions

    def _read(self, numbers: list[float], is_quad: bool, label: str) -> Region | None:
        shares = [number / self.whole for number in numbers]
        if len(shares) == 4 and not is_quad:
            return box_region(shares, label)
        if len(shares) == 2 and "point" in self.kinds and not is_quad:
            return region_of("point", shares, label)
        return region_of("quad", shares, label) if len(shares) == 8 and is_quad else None


def _format(tags: _Tags) -> BoxFormat:
    return BoxFormat(tags.kinds, tags.to_text, tags.to_regions)


BOX_FORMATS.register("qwen_vl")(
    _format(
        _Tags(
            999,
            ("<ref>", "</ref>"),
            {"box": ("<box>", "</box>"), "quad": ("<quad>", "</quad>")},
            frozenset(("box", "quad")),
        )
    )
)
BOX_FORMATS.register("qwen2_vl")(
    _format(
        _Tags(
            1000,
            ("<|object_ref_start|>", "<|object_ref_end|>"),
            {"box": ("<|box_start|>", "<|box_end|>"), "quad": ("<|quad_start|>", "<|quad_end|>")},
            frozenset(("box", "point", "quad")),
        )
    )
)
