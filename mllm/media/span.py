"""A part of a video between two times, named by a string as other references are (`mllm.media.ref`).

`span:START:STOP:SOURCE`, times in milliseconds from the first frame on; SOURCE is a video as `ImageRef` takes it.
"""

import re

SPAN = r"^span:([0-9]+):([0-9]+):"  # for pyarrow, too
_SPAN = re.compile(SPAN)


def span_reference(video: str, start_s: float, stop_s: float) -> str:
    """Name the part of a video from `start_s` to `stop_s` seconds, to the millisecond."""
    return f"span:{round(1000 * start_s)}:{round(1000 * stop_s)}:{video}"


def without_span(source: str) -> tuple[str, tuple[int, int] | None]:
    """Split a source into the video that it is of and its (start, stop) in milliseconds; None for all of a video."""
    found = _SPAN.match(source)
    return (source, None) if found is None else (source[found.end() :], (int(found[1]), int(found[2])))
