"""Lets torchvision be imported where its own operators don't load, as beside many CPU builds of torch: to be imported first.

Its transforms of PIL images need none of them; what needs one still fails.
"""

import importlib.util
from pathlib import Path

import torch


def define_missing() -> torch.library.Library | None:
    """Declare the operators that torchvision speaks of when it is imported; None where they load or it isn't installed."""
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return None
    try:
        for library in Path(found.origin).parent.glob("_C*.so"):
            torch.ops.load_library(str(library))
        torch.ops.torchvision.nms  # noqa: B018
    except (OSError, RuntimeError, AttributeError):
        missing = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            missing.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return missing
    return None


# An operator goes when its library does.
MISSING = define_missing()
