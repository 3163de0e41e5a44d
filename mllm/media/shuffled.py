"""Videos whose frames are shown in another order: what an answer owes to the order is what is lost."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mllm.media.visual import Media, Visual, VisualPlanner


@dataclass(frozen=True)
class ShuffledFrames:
    """A planner that shows the frames that another one chooses of a video, in an order drawn from `seed`."""

    planner: VisualPlanner
    seed: int

    @property
    def depends_on_size(self) -> bool:
        return self.planner.depends_on_size

    def plan(self, media: Sequence[Media], turns: Sequence[int] = ()) -> tuple[Visual, ...]:
        return tuple(shuffled(visual, self.seed) for visual in self.planner.plan(media, turns))

    def longest(self) -> Visual:
        return self.planner.longest()

    def longest_clip(self) -> Visual:
        return self.planner.longest_clip()


def shuffled(visual: Visual, seed: int) -> Visual:
    """The same frames in an order drawn from `seed` that isn't theirs; what is no video, or shows one frame alone, stays."""
    if visual.frames is None or len(set(visual.frames)) == 1:
        return visual
    rng = random.Random(seed)
    crops = list(visual.crops)
    while tuple(crop.frame for crop in crops) == visual.frames:
        rng.shuffle(crops)
    return replace(visual, crops=tuple(crops))
