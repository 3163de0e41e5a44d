"""Random views of training images, encoded once, and the head that is learned from such views (CLAP's "Im.Aug")."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from mllm.contrastive.augment import Augmenter
from mllm.contrastive.augment_settings import AugmentSettings
from mllm.contrastive.zeroshot import DEFAULT_TEMPLATES
from mllm.errors import UserError
from mllm.inference.dual_features import CHUNK, DualEncoder
from mllm.media.decode import read_image
from mllm.studies.adapt.classifier import Classifier
from mllm.studies.adapt.heads import DisentanglingHead, HeadClassifier, HeadTraining, infonce
from mllm.studies.adapt.problem import LabelledFeatures, plain_preparer

# torchvision's own range of areas, which CoOp and CoCoOp leave as it is.
COOP_VIEWS = AugmentSettings(kinds=("random_resized_crop", "flip"), scale=(0.08, 1.0))
TIP_VIEWS = AugmentSettings(kinds=("random_resized_crop", "flip"), scale=(0.5, 1.0))
HEAD_VIEWS = AugmentSettings(
    kinds=("color_jitter", "random_resized_crop"),
    scale=(0.64, 1.0),
    ratio=(1.0, 1.0),
    color_jitter=(0.5, 0.0, 0.0, 0.3),
    color_jitter_probability=1.0,
)


def with_views(
    encoder: DualEncoder, train: LabelledFeatures, settings: AugmentSettings, count: int, seed: int
) -> LabelledFeatures:
    """Add features of `count` random views of each image, drawn by the seed; 0 adds none. Raises UserError where the images
    themselves aren't known."""
    if count == 0:
        return train
    if not train.files:
        raise UserError("random views take images, and only features are known")
    preparer = plain_preparer(encoder)
    augmenter = Augmenter(settings, preparer.image_size_px, seed)
    views: list[list[torch.Tensor]] = [[] for _ in range(count)]
    for start in range(0, len(train.files), CHUNK):
        images = [read_image(path) for path in train.files[start : start + CHUNK]]
        for view, parts in enumerate(views):
            pixels = [preparer(augmenter(image, view, start + n)) for n, image in enumerate(images)]
            with torch.no_grad():
                parts.append(encoder.raw_pixels_to_features(torch.stack(pixels)))
    return replace(train, views=torch.stack([torch.cat(parts) for parts in views]))


@dataclass(frozen=True)
class ImageHead:
    """A head as CLAP's, learned from images and their random views, without a word: the baseline of the CLAP paper.

    Temperature 0.5 and training as CLAP's; a step takes an image of every class. The authors learn from images that a
    diffusion model makes of CLAP's prompts; here it learns from the shots. scale: as CLAP's, see `Clap`.
    """

    training: HeadTraining = field(default_factory=HeadTraining)
    temperature: float = 0.5
    view_count: int = 10
    scale: float | None = 0.056
    templates: Sequence[str] = DEFAULT_TEMPLATES

    def fit(self, encoder: DualEncoder, train: LabelledFeatures, seed: int) -> Classifier:
        views = with_views(encoder, train, HEAD_VIEWS, self.view_count, seed).views
        assert views is not None
        generator = torch.Generator().manual_seed(seed)
        of_class = [(train.labels == label).nonzero().flatten() for label in range(len(train.names))]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = DisentanglingHead(train.raw.shape[1])

        def loss_of_step() -> torch.Tensor:
            rows = torch.stack([found[torch.randint(len(found), (), generator=generator)] for found in of_class])
            which = torch.randint(len(views), (len(rows),), generator=generator)
            return infonce(head(train.raw[rows]), head(views[which, rows]), self.temperature)

        head = self.training.learn(head, loss_of_step).requires_grad_(False)
        fitted = HeadClassifier(encoder, head, self.scale or 1.0, self.templates)
        return fitted.searched(train.held_back) if self.scale is None and train.held_back else fitted
