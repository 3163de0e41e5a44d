"""Which frames of a video are shown: rules by name, in integers and Python's floats alone.

Rules of two releases pick different frames of one video, so that the rule is saved with the model. What they compute is
what the code they come from computes, to the frame.
"""

from collections.abc import Callable
from typing import Literal

from mllm.errors import UserError
from mllm.media.visual import Clip
from mllm.registry import Registry

Sampling = Literal["inclusive", "exclusive", "fps"]
Rule = Callable[[Clip, int, float], tuple[int, ...]]
SAMPLING_RULES: Registry[Rule] = Registry("sampling rule")


def sample_frames(clip: Clip, rule: str, frames: int, fps: float = 1.0) -> tuple[int, ...]:
    """Indices of the frames that `rule` shows of a clip, ascending; a rule may show a frame twice.

    frames: how many at most; `inclusive` always gives as many. fps: frames a second, for the rule `fps`. Raises UserError
    for an unknown rule, and for less than one frame or a rate that isn't above 0.
    """
    if frames < 1 or not fps > 0:
        raise UserError(f"{frames} frames at {fps} a second can't be sampled; both have to be above 0")
    return SAMPLING_RULES.get(rule)(clip, frames, fps)


def average_fps(clip: Clip) -> float:
    """Frames a second, to two decimals, since a container may round the times that it holds to milliseconds."""
    return round(clip.frame_count / clip.seconds, 2) if clip.seconds else 1.0


@SAMPLING_RULES.register("inclusive")
def sample_inclusive(clip: Clip, frames: int, fps: float) -> tuple[int, ...]:
    """`frames` indices from the first frame to the last, evenly: LLaVA's way where a number of frames is forced.

    They are `numpy.linspace(0, N - 1, frames, dtype=int)` of N frames. A video of fewer frames repeats some, as there.
    """
    return _spread(clip.frame_count, frames)


@SAMPLING_RULES.register("exclusive")
def sample_exclusive(clip: Clip, frames: int, fps: float) -> tuple[int, ...]:
    """i · N // n for i below n: the opening of each of n equal parts, as transformers' video processors sample.

    A video of fewer than `frames` frames shows each once, where transformers raises an error.
    """
    shown = min(frames, clip.frame_count)
    return tuple(i * clip.frame_count // shown for i in range(shown))


@SAMPLING_RULES.register("fps")
def sample_by_rate(clip: Clip, frames: int, fps: float) -> tuple[int, ...]:
    """Every round(average rate / fps)-th frame; where those are more than `frames`, as `inclusive` does: LLaVA's way."""
    step = max(1, round(average_fps(clip) / fps))
    shown = tuple(range(0, clip.frame_count, step))
    return shown if len(shown) <= frames else _spread(clip.frame_count, frames)


def _spread(count: int, frames: int) -> tuple[int, ...]:
    """`frames` indices from 0 to count - 1, in the order of floating-point operations that numpy takes."""
    if frames == 1:
        return (0,)
    step = (count - 1) / (frames - 1)
    return (*(int(i * step) for i in range(frames - 1)), count - 1)
