"""Learned prompts: CoOp's context vectors, and CoCoOp's, which depend on the image.

C classes, M context vectors, W text width, E embedding width.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from mllm.errors import UserError
from mllm.inference.dual_features import DualEncoder
from mllm.studies.adapt.classifier import Classifier, Fields, Tensors
from mllm.studies.adapt.problem import LabelledFeatures
from mllm.studies.adapt.prompts import LearnedPrompts, Position, text_width, word_vectors

LR = 0.002
WARMUP_LR = 1e-5
INIT_STD = 0.02


def _coop_epochs(shots: int) -> int:
    """Return 50 for one shot, 100 for up to four, 200 beyond (Zhou et al. 2022, section 4.1)."""
    return 50 if shots <= 1 else 100 if shots <= 4 else 200


def _batches(
    count: int, size: int, epochs: int, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """Yield index batches of all epochs with their rates, by the authors' configs: one epoch at 1e-5, then a cosine from
    0.002, which has an epoch to go at the end."""
    for epoch in range(epochs):
        rate = WARMUP_LR if epoch == 0 < epochs - 1 else LR * 0.5 * (1 + math.cos(math.pi * max(0, epoch - 1) / epochs))
        for group in optimizer.param_groups:
            group["lr"] = rate
        yield from torch.randperm(count, generator=generator).split(size)


@dataclass(frozen=True)
class CoopClassifier:
    """context float32 [M, W] of all classes, or [C, M, W] of those that are known."""

    encoder: DualEncoder
    context: torch.Tensor
    position: Position
    known: Sequence[str]
    kind: ClassVar[str] = "coop"

    def scores(self, raw: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
        if self.context.dim() == 3 and tuple(names) != tuple(self.known):
            raise UserError(f"class-specific contexts know only the classes they were learned for: {self.known}")
        prompts = LearnedPrompts(self.encoder, names, self.context.shape[-2], self.position)
        return self.encoder.factor * F.normalize(raw, dim=-1) @ prompts.features(self.context).T

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"context": self.context}

    def fields(self) -> dict[str, Any]:
        return {"position": self.position, "known": list(self.known)}

    @classmethod
    def restore(cls, encoder: DualEncoder, tensors: Tensors, fields: Fields) -> "CoopClassifier":
        return cls(encoder, tensors["context"], **fields)


@dataclass(frozen=True)
class CoOp:
    """Context vectors learned by cross-entropy (Zhou et al. 2022, IJCV, arXiv:2109.01134).

    context_count 16, random start of std 0.02, SGD 0.002, batch 32, epochs by the number of shots: section 4.1; momentum
    0.9 and weight decay 5e-4: the defaults of the Dassl toolbox that the authors' code runs on. class_specific: one set of
    vectors a class (CSC) in place of one for all. start: words whose vectors the context begins as, in place of
    `context_count` random ones; "a photo of a" is CoOp as the CoCoOp paper compares with it (vit_b16_ctxv1).
    """

    context_count: int = 16
    position: Position = "end"
    class_specific: bool = False
    batch_size: int = 32
    epochs: int | None = None
    start: str | None = None

    def fit(self, encoder: DualEncoder, train: LabelledFeatures, seed: int) -> Classifier:
        generator = torch.Generator().manual_seed(seed)
        context = self._first_context(encoder, len(train.names), generator).requires_grad_()
        prompts = LearnedPrompts(encoder, train.names, context.shape[-2], self.position)
        optimizer = torch.optim.SGD([context], lr=LR, momentum=0.9, weight_decay=5e-4)
        epochs = self.epochs or _coop_epochs(len(train.labels) // len(train.names))
        for rows in _batches(len(train.labels), self.batch_size, epochs, optimizer, generator):
            logits = encoder.factor * train.viewed(rows, generator) @ prompts.features(context).T
            optimizer.zero_grad()
            F.cross_entropy(logits, train.labels[rows]).backward()
            optimizer.step()
        return CoopClassifier(encoder, context.detach(), self.position, train.names)

    def _first_context(self, encoder: DualEncoder, classes: int, generator: torch.Generator) -> torch.Tensor:
        sets = (classes,) if self.class_specific else ()
        if self.start is not None:
            return word_vectors(encoder, self.start).repeat(*sets, 1, 1)
        return INIT_STD * torch.randn((*sets, self.context_count, text_width(encoder)), generator=generator)


class MetaNetwork(nn.Module):
    """Image feature [E] → one vector [W] that is added to every context vector: two layers, a 16th of E between."""

    def __init__(self, embedding_width: int, width: int) -> None:
        super().__init__()
        self.embedding_width = embedding_width
        hidden = max(1, embedding_width // 16)
        self.layers = nn.Sequential(nn.Linear(embedding_width, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        return self.layers(feature)


@dataclass(frozen=True)
class CoCoopClassifier:
    """context float32 [M, W] and the network that shifts it for each image."""

    encoder: DualEncoder
    context: torch.Tensor
    network: MetaNetwork
    kind: ClassVar[str] = "cocoop"

    def scores(self, raw: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
        prompts = LearnedPrompts(self.encoder, names, len(self.context), "end")
        rows = [prompts.features(self.context + self.network(f)) @ f for f in F.normalize(raw, dim=-1)]
        return self.encoder.factor * torch.stack(rows)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"context": self.context, **self.network.state_dict()}

    def fields(self) -> dict[str, Any]:
        return {"embedding_width": self.network.embedding_width}

    @classmethod
    def restore(cls, encoder: DualEncoder, tensors: Tensors, fields: Fields) -> "CoCoopClassifier":
        network = MetaNetwork(fields["embedding_width"], tensors["context"].shape[1]).requires_grad_(False)
        network.load_state_dict({name: tensor for name, tensor in tensors.items() if name != "context"})
        return cls(encoder, tensors["context"], network)


@dataclass(frozen=True)
class CoCoOp:
    """Contexts that a small network shifts for each image (Zhou et al. 2022, CVPR, arXiv:2203.05557).

    Starts from the words "a photo of a", batch 1, 10 epochs, SGD 0.002, a network with a 16th of E between: section 4 and
    the authors' vit_b16_c4_ep10_batch1_ctxv1; momentum and weight decay as CoOp's.
    """

    start: str = "a photo of a"
    epochs: int = 10

    def fit(self, encoder: DualEncoder, train: LabelledFeatures, seed: int) -> Classifier:
        generator = torch.Generator().manual_seed(seed)
        context = word_vectors(encoder, self.start).requires_grad_()
        prompts = LearnedPrompts(encoder, train.names, len(context), "end")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = MetaNetwork(train.raw.shape[1], text_width(encoder))
        parameters = [context, *network.parameters()]
        optimizer = torch.optim.SGD(parameters, lr=LR, momentum=0.9, weight_decay=5e-4)
        for rows in _batches(len(train.labels), 1, self.epochs, optimizer, generator):
            image = train.viewed(rows, generator)[0]
            logits = encoder.factor * prompts.features(context + network(image)) @ image
            optimizer.zero_grad()
            F.cross_entropy(logits[None], train.labels[rows]).backward()
            optimizer.step()
        return CoCoopClassifier(encoder, context.detach(), network.requires_grad_(False))
