"""Zero-shot accuracy and retrieval of a dual encoder while it trains."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mllm.contrastive.labelled import Labelled, read_labelled
from mllm.contrastive.pairs import Pair, read_pairs
from mllm.contrastive.prompts import read_templates
from mllm.contrastive.retrieval import pairs_recall
from mllm.contrastive.settings import ClipEvalSettings
from mllm.contrastive.zeroshot import ENSEMBLE, check_templates, class_features, top_k_accuracy
from mllm.inference.dual_features import DualEncoder
from mllm.training.averages import check_whole
from mllm.training.callbacks import Callback
from mllm.training.engine import Engine

RECALLS, ACCURACIES = (1, 5, 10), (1, 5)


@dataclass(frozen=True)
class SharedEncoder(DualEncoder):
    """The model that trains; each rank encodes a share of what every rank then has the features of."""

    engine: Engine

    def raw_images(self, paths: Sequence[Any]) -> torch.Tensor:
        return self._shared(super().raw_images, paths)

    def raw_texts(self, texts: Sequence[str]) -> torch.Tensor:
        return self._shared(super().raw_texts, texts)

    def _shared(self, encode: Callable[[Sequence[Any]], torch.Tensor], things: Sequence[Any]) -> torch.Tensor:
        ranks = self.engine.world_size
        own = things[self.engine.rank :: ranks]
        with self.engine.autocast():
            parts = self.engine.gather(encode(own) if own else None)
        width = next(part.shape[1] for part in parts if part is not None)
        features = torch.empty(len(things), width)
        for rank, part in enumerate(parts):
            if part is not None:
                features[rank::ranks] = part
        return features


class Watcher(Callback):
    """Measures every so many steps, on all ranks, and at the end: `zero_shot_accuracy@k` of a folder, `recall` of pairs."""

    def __init__(self, settings: ClipEvalSettings, encoder: SharedEncoder, image_root: str) -> None:
        """Raises UserError for missing files, and for a folder without a name."""
        check_whole(encoder.engine.module, "eval")
        self._every, self._encoder = settings.every_steps, encoder
        self._total = 0
        self._pairs: list[Pair] | None = None
        self._labelled: Labelled | None = None
        measured: list[str] = []
        if settings.pairs is not None:
            self._pairs = read_pairs(settings.pairs, settings.image_root or image_root, settings.reader)
            ways = ("image_to_text", "text_to_image")
            measured += [f"{way}_recall@{k}" for way in ways for k in RECALLS]
        if settings.folder is not None:
            self._labelled = read_labelled(settings.folder, settings.class_file)
            own = self._labelled.templates or list(ENSEMBLE)
            self._templates = read_templates(settings.templates) if settings.templates else own
            check_templates(self._templates)
            measured += [f"zero_shot_accuracy@{k}" for k in ACCURACIES]
        self.measures = tuple(measured)

    def on_start(self, step: int, total_steps: int) -> None:
        self._total = total_steps

    def measure(self, step: int) -> Mapping[str, float | str]:
        if step % self._every and step != self._total:
            return {}
        model = self._encoder.model
        model.eval()
        found: dict[str, float] = {}
        if self._pairs is not None:
            found |= pairs_recall(self._encoder, self._pairs, RECALLS)
        if self._labelled is not None:
            classes = class_features(self._encoder, self._labelled.names, self._templates)
            scores = self._encoder.images(self._labelled.images) @ classes.T
            labels = torch.tensor(self._labelled.labels)
            found |= {f"zero_shot_accuracy@{k}": top_k_accuracy(scores, labels, k) for k in ACCURACIES}
        model.train()
        return {name: found[name] for name in self.measures}
