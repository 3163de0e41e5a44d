"""Where an image lies in what the encoder sees of it: sizes and offsets in pixels, for pixels and boxes alike."""

from dataclasses import dataclass

from mllm.media.visual import Fit, Size, Visual

MAX_PADDED_SIDE_PX = 8192
MOST_SCALED = 64  # a longer strip is cut before it is scaled


def padded_size(size: Size) -> Size:
    """The size that an image has on its square of padding: its own, unless the square would be too large."""
    height, width = size
    side = max(size)
    if side <= MAX_PADDED_SIDE_PX:
        return size
    # A 1×100000 strip would become a square of 10 gigapixels.
    scale = MAX_PADDED_SIDE_PX / side
    return max(1, round(height * scale)), max(1, round(width * scale))


def padding(size: Size) -> tuple[int, int]:
    """(top, left): where an image of `size` lies on the square of its longer side."""
    side = max(size)
    return (side - size[0]) // 2, (side - size[1]) // 2


def cropped(size: Size, side_px: int) -> tuple[Size, int]:
    """(size that an image is scaled to, side of the square cut from its middle) where `fit` is crop.

    The square is scaled to `side_px`. A strip is not scaled as a whole: 1×10000 pixels would be 640,000 long.
    """
    height, width = size
    short, long = min(size), max(size)
    scaled_long = max(side_px, int(side_px * long / short))
    if scaled_long > MOST_SCALED * side_px:
        return size, short
    return ((side_px, scaled_long) if width > height else (scaled_long, side_px)), side_px


@dataclass(frozen=True)
class Frame:
    """What one picture shows of an image, which coordinates may be over.

    size: (height, width) of the image in pixels, as it is displayed. extent: left, top, right and bottom of the picture,
    where the image is from 0 to 1: beyond it where the picture is padded, within it where it is cropped. pixels: (height,
    width) of the picture as it is scaled, in tiles or in one.
    """

    size: Size
    extent: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    pixels: Size = (1, 1)

    def into(self, x: float, y: float) -> tuple[float, float]:
        """A place of the image, 0 to 1, as one of the picture, 0 to 1."""
        left, top, right, bottom = self.extent
        return (x - left) / (right - left), (y - top) / (bottom - top)

    def out_of(self, x: float, y: float) -> tuple[float, float]:
        """A place of the picture, 0 to 1, as one of the image, 0 to 1."""
        left, top, right, bottom = self.extent
        return left + x * (right - left), top + y * (bottom - top)


def frame_of(size: Size, visual: Visual, fit: Fit, side_px: int) -> Frame:
    """The frame of an image of `size` that became `visual`; fit, side_px: the model's own fit and the side of a tile.

    Of an image in tiles the picture is the image that they are cut from, which an overview shows whole, too.
    """
    scaled = next((crop.scaled for crop in visual.crops if crop.scaled is not None), None)
    if scaled is not None:
        return Frame(size, pixels=scaled)
    fit, square = visual.crops[0].fit or fit, (side_px, side_px)
    if fit == "stretch":
        return Frame(size, pixels=square)
    if fit == "pad":
        shown = padded_size(size)
        (top, left), side = padding(shown), max(shown)
    else:
        shown, side = cropped(size, side_px)
        top, left = -((shown[0] - side) // 2), -((shown[1] - side) // 2)
    height, width = shown
    return Frame(size, (-left / width, -top / height, (side - left) / width, (side - top) / height), square)
