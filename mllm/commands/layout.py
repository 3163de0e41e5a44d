"""`mllm data layout`: what images become in a model, from their sizes alone."""

import argparse
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mllm.commands.arguments import A_MODEL, add_part, at_least_1
from mllm.commands.train import read_run
from mllm.errors import UserError
from mllm.settings import expanded

if TYPE_CHECKING:
    from mllm.checkpoint.geometry import Layout
    from mllm.media.visual import Size, Visual


def add_layout(parts: Any) -> None:
    """The subcommand, among `parts` of `mllm data`."""
    layout = add_part(
        parts,
        "layout",
        _layout,
        "Say what images become in a model: tiles, what is kept of their map, image tokens. Sizes are read from the files' "
        "headers, as displayed, or given as WIDTHxHEIGHT; no weights are read but those of a model of another framework.",
        "mllm data layout train/configs/demo_stage2.yaml --size 640x480 336x336",
        "mllm data layout runs/demo/stage2 cat.jpg dog.jpg --json",
    )
    layout.add_argument(
        "model", type=expanded, metavar="MODEL", help=f"A training config (a YAML file), or: {A_MODEL}."
    )
    layout.add_argument("files", type=expanded, nargs="*", metavar="IMAGE", help="Files of images.")
    layout.add_argument(
        "--size",
        dest="sizes",
        type=_size,
        nargs="+",
        action="extend",
        default=[],
        metavar="WxH",
        help="Width and height in pixels of an image that needn't be there. Repeatable.",
    )
    layout.add_argument(
        "--images",
        type=at_least_1,
        default=1,
        metavar="N",
        help="Number of images of each size that are shown together in one turn (default: %(default)s).",
    )
    layout.add_argument(
        "--json",
        action="store_true",
        help="Print a line of JSON for each size: width, height, tiles and tokens, the latter two of all N images.",
    )


def _size(text: str) -> "Size":
    """Parse WIDTHxHEIGHT as (height, width); argparse shows the error as one line."""
    found = re.fullmatch(r"(\d+)[x×](\d+)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write it as WIDTHxHEIGHT, such as 640x480")
    return int(found[2]), int(found[1])


def _layout(options: argparse.Namespace) -> None:
    if not options.files and not options.sizes:
        raise UserError("name images, or sizes such as --size 640x480")
    geometry, planner = _layout_of(options.model)
    sizes = [*_read(options.files), *(("", size) for size in options.sizes)]
    planned = [(name, size, planner.plan([size]), planner.plan([size] * options.images)) for name, size in sizes]
    if options.json:
        for _, (height, width), _, together in planned:
            tiles, tokens = (sum(getattr(v, each) for v in together) for each in ("tile_count", "token_count"))
            print(json.dumps({"width": width, "height": height, "tiles": tiles, "tokens": tokens}))
        return
    from rich.table import Table

    from mllm.console import report_console

    several = [f"tokens of {options.images}"] if options.images > 1 else []
    table = Table("image", "size", "tiles", "grid", "kept", "tokens", *several)
    for name, (height, width), (visual,), together in planned:
        cells = [
            name,
            f"{width}×{height}",
            str(visual.tile_count),
            _by(visual.grid[1:]),
            _by(_kept(visual, geometry.side)) if geometry.has_places else "–",
        ]
        tokens = [str(visual.token_count), *([str(sum(v.token_count for v in together))] if several else [])]
        table.add_row(*cells, *tokens)
    report_console().print(table)


def _read(files: Sequence[str]) -> "list[tuple[str, Size]]":
    """Files with the sizes of their images as displayed. Without files nothing that decodes is loaded."""
    if not files:
        return []
    from mllm.media.decode import read_image_size

    return [(file, read_image_size(file)) for file in files]


def _layout_of(model: str) -> "Layout":
    from mllm.checkpoint.geometry import layout_of_model, layout_of_settings

    if not model.endswith((".yaml", ".yml")):
        return layout_of_model(model)
    return layout_of_settings(read_run(model).model)


def _kept(visual: "Visual", side: int) -> tuple[int, int]:
    """(rows, columns) of the features of the tiles side by side that become image tokens."""
    from mllm.media.visual import Arrangement

    return (visual.arrangement or Arrangement()).map_size(visual.grid, side)


def _by(pair: tuple[int, ...]) -> str:
    return "×".join(map(str, pair))
