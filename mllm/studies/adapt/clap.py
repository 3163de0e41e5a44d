"""CLAP: a head on frozen features that keeps content and drops style, learned from text alone.

C classes, P prompts a class, E embedding width.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from mllm.contrastive.zeroshot import DEFAULT_TEMPLATES
from mllm.inference.dual_features import DualEncoder
from mllm.studies.adapt.clap_prompts import TEMPLATE, PromptChanges, changed, prompts_of
from mllm.studies.adapt.classifier import Classifier
from mllm.studies.adapt.heads import DisentanglingHead, HeadClassifier, HeadTraining, infonce
from mllm.studies.adapt.problem import LabelledFeatures
from mllm.studies.adapt.prompts import Position, noisy_text_features

NOISE_POSITIONS: tuple[Position, ...] = ("end", "middle", "front")


@dataclass(frozen=True)
class Clap:
    """Contrastive learning with augmented prompts (Cai et al. 2024, ECCV, arXiv:2311.16445).

    Temperature 0.5, and the class name's own term at temperature 1 and weight 1, four inserted noise vectors of std 0.02,
    and once learned, `scale` 0.056 in place of 1: the authors' released VLCS settings for ViT-B/16. They search `scale` per
    data set (OfficeHome's is 0.14): None does, by what is held back. sources: of prompts, see `clap_prompts`; several are
    put together, and of each class as many are taken as the class with fewest has.

    A step takes one prompt of every class, where theirs takes a few more prompts than classes; a prompt is augmented once,
    where theirs is anew at every step, so that features are computed once.
    """

    training: HeadTraining = field(default_factory=HeadTraining)
    temperature: float = 0.5
    name_temperature: float = 1.0
    name_weight: float = 1.0
    noise_count: int = 4
    noise_std: float = 0.02
    prompts_per_class: int = 480
    sources: Sequence[str] = (TEMPLATE,)
    changes: PromptChanges = field(default_factory=PromptChanges)
    scale: float | None = 0.056
    templates: Sequence[str] = DEFAULT_TEMPLATES

    def fit(self, encoder: DualEncoder, train: LabelledFeatures, seed: int) -> Classifier:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            plain, augmented = self._views(encoder, train.names, random.Random(seed))
            names = encoder.raw_texts(train.names)
            head = self.learn_head(plain, augmented, names, torch.Generator().manual_seed(seed))
        fitted = HeadClassifier(encoder, head.requires_grad_(False), self.scale or 1.0, self.templates)
        return fitted.searched(train.held_back) if self.scale is None and train.held_back else fitted

    def learn_head(
        self, plain: torch.Tensor, augmented: torch.Tensor, names: torch.Tensor, generator: torch.Generator
    ) -> DisentanglingHead:
        """Draw together the views of a class, and the augmented one and its bare name, away from the other classes'.

        plain, augmented: prompt features [C, P, E] and those of the same prompts augmented; names: [C, E]; as the model
        gives them.
        """
        head = DisentanglingHead(plain.shape[-1])
        classes = torch.arange(len(names))

        def loss_of_step() -> torch.Tensor:
            which = torch.randint(plain.shape[1], (len(names),), generator=generator)
            one, other = head(plain[classes, which]), head(augmented[classes, which])
            loss = infonce(one, other, self.temperature)
            return loss + self.name_weight * infonce(other, head(names), self.name_temperature)

        return self.training.learn(head, loss_of_step)

    def _views(
        self, encoder: DualEncoder, names: Sequence[str], rng: random.Random
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features [C, P, E] of prompts, and of the same prompts augmented."""
        all_prompts = [[text for source in self.sources for text in prompts_of(source, name)] for name in names]
        count = min(self.prompts_per_class, *map(len, all_prompts))
        texts = [text for prompts in all_prompts for text in rng.sample(prompts, count)]
        places = [rng.choice(NOISE_POSITIONS) for _ in texts]
        augmented_texts = [changed(text, self.changes, rng) for text in texts]
        plain = encoder.raw_texts(texts)
        augmented = torch.empty_like(plain)
        for position in NOISE_POSITIONS:
            rows = [n for n, place in enumerate(places) if place == position]
            if rows:
                chosen = [augmented_texts[n] for n in rows]
                augmented[rows] = noisy_text_features(encoder, chosen, self.noise_count, self.noise_std, position)
        shape = (len(names), count, -1)
        return plain.reshape(shape), augmented.reshape(shape)
